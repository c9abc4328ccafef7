"""Optimizer `example`: the sign of a running mean of gradients."""

from __future__ import annotations

from typing import Any

import torch

from sslzoo import hookimpl
from sslzoo.keys import BelowOne


class Example(torch.optim.Optimizer):
    """Steps of one size, along the sign of a running mean of gradients; decay apart from them.

    m <- momentum m + (1 - momentum) g;  w <- w - lr (sign m + decay w).

    Args:
        momentum: share of the running mean kept at a step.
    """

    shards = True  # each number moves by itself, so pieces of weights will do

    def __init__(self, groups: list[dict[str, Any]], *, momentum: BelowOne = 0.9) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})  # the engine writes both before every step
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]  # saved and restored: all that is to be remembered lies here
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(weight)
                state["mean"].lerp_(weight.grad, 1 - self.momentum)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(state["mean"].sign(), alpha=-group["lr"])


@hookimpl
def sslzoo_optimizers() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
