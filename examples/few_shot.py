"""Probe `few-shot`: how good are class means of a few images each?"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from sslzoo import Features, hookimpl
from sslzoo.keys import Count


class FewShot:
    """Nearest class mean by cosine, each mean of a few training images; the mean over several draws of them.

    Figures, for each task in percent: top1.

    Args:
        shots: training images of each class.
        draws: how often other images are drawn.
    """

    def __init__(self, *, shots: Count = 5, draws: Count = 10) -> None:
        self.shots, self.draws = shots, draws

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        """{"task/top1": percent}."""
        figures = {}
        center = train.x.mean(0)
        x, y = F.normalize(train.x - center, dim=1), F.normalize(test.x - center, dim=1)
        for task in train.tasks:
            rng = torch.Generator().manual_seed(seed)  # each task its own draws, whatever tasks stand beside it
            labels, right = train.labels[task], []
            classes = labels.unique()
            for _ in range(self.draws):
                order = torch.randperm(len(x), generator=rng)
                means = [x[order[labels[order] == one][: self.shots]].mean(0) for one in classes]
                nearest = classes[(y @ torch.stack(means).T).argmax(1)]
                right.append((nearest == test.labels[task]).float().mean().item())
            figures[f"{task}/top1"] = 100 * sum(right) / len(right)
        return figures


@hookimpl
def sslzoo_probes() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"few-shot": FewShot}
