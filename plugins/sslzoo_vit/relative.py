"""How far do two patches lie apart? A learned bias of attention; and learned tables on grids they were not made for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Grid


def resized(table: Tensor, native: Grid, grid: Grid, way: str = "antialias") -> Tensor:
    """A table of one row a position, made for one grid, on another, bicubic: [native e] -> [N e].

    The way is antialias, plain, or offset: as if the grid were a tenth of a patch larger (DINO's code).
    """
    if native == grid:
        return table
    plane = table.T.unflatten(1, native)[None].float()
    if way == "offset":
        factors = tuple((new + 0.1) / old for new, old in zip(grid, native, strict=True))
        plane = F.interpolate(plane, scale_factor=factors, mode="bicubic")  # type: ignore[arg-type]
    else:
        plane = F.interpolate(plane, grid, mode="bicubic", antialias=way == "antialias")
    return plane[0].flatten(1).T


class RelativeBias(nn.Module):
    """One table for all blocks: what a query adds to its attention of a key so many rows and columns away.

    Bao et al. 2021 (BEiT), section 2; Baevski et al. 2022 (data2vec). The last three rows are for tokens without
    a position (class, registers): from them to patches, from patches to them, among them.

    Args:
        heads: attention heads.
        native: the grid that the table is made for.
    """

    def __init__(self, heads: int, native: Grid) -> None:
        super().__init__()
        self.native = (2 * native[0] - 1, 2 * native[1] - 1)
        self.table = nn.Parameter(torch.zeros(self.native[0] * self.native[1] + 3, heads))

    def forward(self, grid: Grid, index: Tensor, ahead: int) -> Tensor:
        """The bias among the patches at `index` [s k], behind `ahead` tokens without a position: [s heads a+k a+k]."""
        rows, columns = index // grid[1], index % grid[1]
        down = rows[:, :, None] - rows[:, None] + grid[0] - 1
        across = columns[:, :, None] - columns[:, None] + grid[1] - 1
        table, wide = self._table(grid), 2 * grid[1] - 1
        entry = F.pad(down * wide + across, (ahead, 0, ahead, 0))
        last = len(table)
        entry[:, :ahead, ahead:], entry[:, ahead:, :ahead], entry[:, :ahead, :ahead] = last - 3, last - 2, last - 1
        return table[entry].permute(0, 3, 1, 2).contiguous()  # fused attention on GPUs takes no other

    def _table(self, grid: Grid) -> Tensor:
        other = (2 * grid[0] - 1, 2 * grid[1] - 1)
        if other == self.native:
            return self.table
        return torch.cat([resized(self.table[:-3], self.native, other), self.table[-3:]])
