"""What do frozen features tell when few images have labels? Logistic regression on a part of each class."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sslzoo import Features
from sslzoo.keys import Count, NotNegative, Share
from sslzoo.rng import generator
from sslzoo_probes.frozen import Rows, fit, percent

Shots = Annotated[int, Field(ge=1, le=2**20)]


class FewLabels:
    """Logistic regression on some labeled images of each class: a share of them (1 % labels), or so many (n-shot).

    MSN's low-shot protocol (Assran et al. 2022): features are centered and normalized, there is no intercept, and the
    penalty is fixed, for few labels leave none to choose it with. Two things differ: MSN reads the class token before
    the encoder's final norm, here the features are the section's own pooling; and its solver is another.

    Figures, for each task in percent: top1, the mean over draws of labeled images, and its standard deviation over
    draws; and how many images had labels. A published list of labeled images is a data set of its own: name it as
    `evaluate.train`, with `share: 1`.

    Args:
        share: share of each class's training images that have labels, at least one of each class.
        shots: labeled training images of each class; give this or a share.
        draws: how often other images are drawn.
        penalty: with the mean cross-entropy of n labeled images, penalty / 2n on the sum of squared weights (MSN:
            2.5e-4; with 5 images of each class 2.5e-3).
    """

    protocol = 2  # before, the penalty was not divided by the number of labeled images, and there was an intercept

    def __init__(
        self, *, share: Share | None = None, shots: Shots | None = None, draws: Count = 3, penalty: NotNegative = 2.5e-4
    ) -> None:
        if (share is None) == (shots is None):
            raise ValueError("give either share, such as 0.01, or shots, such as 5")
        self.share, self.shots, self.draws, self.penalty = share, shots, draws, penalty

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float | Tensor]:
        """{"task/top1": percent, "task/std": over draws, "task/labeled": images, "task/correct": share of draws [n]}.

        Of one draw, correct is bool.
        """
        figures: dict[str, float | Tensor] = {}
        for task, classes in train.tasks.items():
            right, labeled = [], torch.zeros(0)
            for draw in range(self.draws):
                labeled = self.chosen(
                    train.labels[task], torch.randperm(len(train.x), generator=generator(seed, task, draw))
                )
                x, y = train.x[labeled].to(train.device), train.labels[task][labeled].to(train.device)
                mean = x.float().mean(0)
                rows, there = (F.normalize(one.to(train.device).float() - mean, dim=1) for one in (x, test.x))
                weight = fit(Rows(rows, bare=True), y, classes, self.penalty / (2 * len(labeled)), None)
                right.append(Rows(there, bare=True).answers(weight).cpu() == test.labels[task])
            scores = torch.tensor([percent(one) for one in right], dtype=torch.double)
            figures |= {f"{task}/top1": scores.mean().item(), f"{task}/labeled": float(len(labeled))}
            if self.draws > 1:
                figures[f"{task}/std"] = scores.std().item()
            figures[f"{task}/correct"] = right[0] if self.draws == 1 else torch.stack(right).float().mean(0)
        return figures

    def chosen(self, labels: Tensor, order: Tensor) -> Tensor:
        """The first images of each class in an order [n], as numbers, in that order."""
        own = labels[order]
        sizes = own.bincount()
        wanted = [self.shots if self.share is None else max(1, round(self.share * int(size))) for size in sizes]
        rank = torch.zeros_like(own)
        for kind, size in enumerate(sizes.tolist()):
            rank[own == kind] = torch.arange(size)
        return order[rank < torch.tensor(wanted)[own]]
