"""Predictor `nearby`: guesses a hidden patch from what is seen around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder


class Nearby(nn.Module):
    """Means of the visible tokens, weighted by distance on the grid, then a multilayer perceptron.

    Args:
        reach: distance in patches at which a token counts a third of one at hand.
        width: channels inside.
    """

    blocks_apart = True  # target blocks do not read one another
    projector = None  # nothing here that a teacher would have to copy

    def __init__(self, encoder: Encoder, *, reach: float = 1.5, width: int = 128) -> None:
        super().__init__()
        if reach <= 0:
            raise ValueError(f"reach: found {reach}; above 0")
        self.reach, self.outputs = reach, {"patch": Signal("patch", encoder.width)}
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(encoder.width, width), nn.GELU())])
        self.leave = nn.Linear(width, encoder.width)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """{"patch": [t e]}."""
        if target is None:
            return {}
        asked, seen = (_places(index, tokens.grid[1]) for index in (target.index.flatten(1), tokens.index))
        near = (-torch.cdist(asked, seen) / self.reach).exp()  # s m*q k
        if tokens.length is not None:  # padding counts nothing
            near = near * (torch.arange(near.shape[-1], device=near.device) < tokens.length[:, None, None])
        x = near / near.sum(-1, keepdim=True) @ tokens.patches.float()
        for block in self.blocks:
            x = block(x)
        return {"patch": target.flat(self.leave(x).unflatten(1, target.index.shape[1:]))}


def _places(index: Tensor, columns: int) -> Tensor:
    """Row and column of each patch: [s n] -> [s n 2]."""
    return torch.stack([index // columns, index % columns], -1).float()


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"nearby": Nearby}
