"""Probe `example`: each class is its mean; an image belongs to the nearest."""

from __future__ import annotations

import torch

from sslzoo import Features, hookimpl
from sslzoo.keys import Positive


class Example:
    """Nearest class mean on standardized features.

    Figures, for each task in percent: top1.

    Args:
        shrink: added to each channel's deviation before dividing by it.
    """

    def __init__(self, *, shrink: Positive = 1e-3) -> None:
        self.shrink = shrink

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        """{"task/top1": percent}."""
        mean, std = train.x.mean(0), train.x.std(0) + self.shrink
        x, y = (train.x - mean) / std, (test.x - mean) / std
        figures = {}
        for task, classes in train.tasks.items():
            of_class = torch.nn.functional.one_hot(train.labels[task], classes).float()  # n c
            centers = of_class.T @ x / of_class.sum(0)[:, None].clamp(min=1)
            nearest = torch.cdist(y, centers).argmin(1)
            figures[f"{task}/top1"] = (nearest == test.labels[task]).float().mean().item() * 100
        return figures


@hookimpl
def sslzoo_probes() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
