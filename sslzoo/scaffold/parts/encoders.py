"""Encoder `example`: patches embedded, positions added, and a stack of layers that mix what is seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo import Patches, Tokens, hookimpl
from sslzoo.keys import Count, Side, Width
from sslzoo.nn import Block, LayerNorm, Positions, patchify


class Example(nn.Module):
    """A small vision transformer that drops hidden patches.

    Args:
        width: channels of a token, a multiple of 4 and of heads.
        depth: blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
    """

    ragged = False  # contexts of one length only

    def __init__(self, *, width: Width = 96, depth: Count = 2, heads: Count = 3, patch: Side = 8) -> None:
        super().__init__()
        self.width, self.patch = width, (patch, patch)
        self.embed = nn.Linear(3 * patch * patch, width)
        self.positions = Positions(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = LayerNorm(width)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches. Raises ValueError where the image does not split."""
        if size[0] % self.patch[0] or size[1] % self.patch[1]:
            raise ValueError(f"an image of {size[0]} x {size[1]} does not split into patches of {self.patch[0]}")
        return size[0] // self.patch[0], size[1] // self.patch[1]

    def forward(self, pixels: Tensor, context: Patches | None = None, layers: int = 0) -> Tokens:
        """Tokens of the patches in `context`, or of all: [s 3 H W] -> [s k d]."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        x = self.embed(patchify(pixels, self.patch)) + self.positions(grid, pixels.device)
        if context is None:
            index = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        else:
            x, index = context.take(x), context.index
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.norm(x)
        return Tokens(x, index, x.mean(1), grid, layers=tuple(outputs[len(outputs) - layers :]))


@hookimpl
def sslzoo_encoders() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
