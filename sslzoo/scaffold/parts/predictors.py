"""Predictor `example`: guesses each hidden patch from its position and the mean of what is seen."""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.keys import Count, Width
from sslzoo.nn import Positions, mean_of


class Example(nn.Module):
    """A multilayer perceptron on (mean of the visible tokens + position of the hidden patch).

    Args:
        width: channels inside, a multiple of 4.
        depth: layers.
    """

    blocks_apart = True  # target blocks do not read one another
    projector = None  # nothing here that a teacher would have to copy

    def __init__(self, encoder: Encoder, *, width: Width = 128, depth: Count = 2) -> None:
        super().__init__()
        self.outputs = {"patch": Signal("patch", encoder.width)}
        self.enter = nn.Linear(encoder.width, width)
        self.positions = Positions(width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth))
        self.leave = nn.Linear(width, encoder.width)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """Guesses of target patches: {"patch": [t e]}."""
        if target is None:
            return {}
        seen = self.enter(mean_of(tokens.patches, tokens.length))  # s d
        table = self.positions(tokens.grid, seen.device)  # N d
        x = seen[:, None, None] + table[target.index]  # s m q d
        for block in self.blocks:
            x = x + block(x)
        return {"patch": target.flat(self.leave(x))}  # padding of short rows is dropped


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
