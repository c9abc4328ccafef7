"""Who guesses, where the encoder did the work? A linear layer on the tokens at target places (SimMIM, data2vec)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sslzoo import Patches, Progress, Signal, Tokens, hookimpl
from sslzoo.contracts import Encoder
from sslzoo.nn import pixels_of


class Linear(nn.Module):
    """A linear read-out of target tokens; the encoder keeps hidden patches (hidden: fill).

    Args:
        to: tokens (as wide as the encoder) or pixels of a patch.
    """

    projector = None

    def __init__(self, encoder: Encoder, *, to: Literal["tokens", "pixels"] = "tokens") -> None:
        super().__init__()
        width = pixels_of(encoder) if to == "pixels" else encoder.width
        self.outputs = {"patch": Signal("patch", width)}
        self.blocks = nn.ModuleList()
        self.out = nn.Linear(encoder.width, width)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> dict[str, Tensor]:
        """{"patch": [t e]}."""
        return {} if target is None else {"patch": self.out(target.flat(tokens.at(target)))}


@hookimpl
def sslzoo_predictors() -> dict[str, type]:
    """The predictor `linear`."""
    return {"linear": Linear}
