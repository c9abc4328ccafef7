"""Target generator `blurred-pixels`: the low frequencies of hidden patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Batch, Progress, Reading, Signal, Student, hookimpl


class BlurredPixels(nn.Module):
    """Means of square cells of each hidden patch.

    Args:
        cells: cells along a side of a patch; 1 asks for its mean color.
    """

    def __init__(self, student: Student, *, cells: int = 2) -> None:
        super().__init__()
        patch = student.encoder.patch  # type: ignore[attr-defined] - encoders with square patches have it
        if cells < 1 or patch[0] % cells or patch[1] % cells:
            raise ValueError(f"cells: {cells} do not divide a patch of {patch[0]} x {patch[1]}")
        self.patch, self.cells = patch, cells
        self.outputs = {"patch": Signal("patch", 3 * cells * cells)}

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> Mapping[str, Tensor]:
        """{"patch": [t e]}."""
        found = []
        for group in batch.groups.values():
            if group.mask is not None:
                cell = (self.patch[0] // self.cells, self.patch[1] // self.cells)
                small = F.avg_pool2d(group.pixels.flatten(0, 1), cell)
                cells = F.unfold(small, self.cells, stride=self.cells).transpose(1, 2)  # s N e
                target = group.mask.target
                found.append(target.flat(target.take(group.mask.rows(cells))))
        return {"patch": torch.cat(found)}

    def after_step(self, student: Student, at: Progress) -> None:
        """Nothing follows."""


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"blurred-pixels": BlurredPixels}
