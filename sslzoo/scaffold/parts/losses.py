"""Loss `example`: the logarithm of the hyperbolic cosine, smooth near zero and linear far away."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Pairing, Progress, Signal, hookimpl
from sslzoo.keys import Positive


class Example(nn.Module):
    """log cosh of the difference, mean over channels, weighted mean over patches.

    Args:
        sharpness: differences are multiplied by this first.
    """

    needs_target = True

    def __init__(self, signal: Signal, *, sharpness: Positive = 1.0) -> None:
        super().__init__()
        if signal.kind != "patch":
            raise ValueError(f"this loss compares patches, but was given {signal.kind} signals")
        self.sharpness = sharpness

    def forward(
        self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Value to minimize, and figures to log. Summing `pairing.weight * row` gives the mean over ranks and parts."""
        assert target is not None
        x = (prediction - target).abs() * self.sharpness
        rows = (x + F.softplus(-2 * x) - math.log(2)).mean(-1)  # log cosh x, without overflow
        return (rows * pairing.weight).sum(), {}


@hookimpl
def sslzoo_losses() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
