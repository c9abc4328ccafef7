"""What do frozen features know? k nearest neighbours, and a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sslzoo import Features, hookimpl
from sslzoo.rng import generator


class Knn:
    """Weighted k-NN on normalised features, by cosine (DINO's protocol; Caron et al. 2021, section 4.1).

    Figures, for each task in percent: top1 of the best k, and top1 of each k.

    Args:
        k: numbers of neighbours; those above the number of training images are left out.
        temperature: a neighbour votes exp(cosine / temperature).
    """

    def __init__(self, *, k: tuple[int, ...] = (10, 20, 100, 200), temperature: float = 0.07) -> None:
        if not k or min(k) < 1 or temperature <= 0:
            raise ValueError(f"k, temperature: found {k}, {temperature}; neighbors at least 1, temperature above 0")
        self.k, self.temperature = k, temperature

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        """{"task/top1": percent, "task/top1@10": percent, ...}."""
        ks = [k for k in self.k if k <= len(train.x)] or [len(train.x)]
        near, index = self._neighbours(train.x, test.x, max(ks))
        votes = (near / self.temperature).exp()
        figures: dict[str, float] = {}
        for task, classes in train.tasks.items():
            of_each = F.one_hot(train.labels[task][index], classes) * votes[..., None]  # n k classes
            told = of_each.cumsum(1)
            right = {k: (told[:, k - 1].argmax(1) == test.labels[task]).double().mean().item() * 100 for k in ks}
            figures[f"{task}/top1"] = max(right.values())
            figures |= {f"{task}/top1@{k}": value for k, value in right.items()}
        return figures

    def _neighbours(self, train: Tensor, test: Tensor, k: int) -> tuple[Tensor, Tensor]:
        keys = F.normalize(train.float(), dim=1)
        found = [(F.normalize(some.float(), dim=1) @ keys.T).topk(k, 1) for some in test.split(512)]
        return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


class Linear:
    """Multinomial logistic regression on standardised features, its L2 penalty chosen on a part of the training set.

    Figures, for each task in percent: top1; and the chosen penalty.

    Args:
        penalties: L2 penalties tried, on weights, with the mean cross-entropy.
        held_out: share of the training images that choose between them.
    """

    def __init__(self, *, penalties: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2), held_out: float = 0.2) -> None:
        if not penalties or min(penalties) < 0 or not 0 < held_out < 1:
            raise ValueError(f"penalties, held_out: found {penalties}, {held_out}; penalties >= 0, a share below 1")
        self.penalties, self.held_out = penalties, held_out

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float]:
        """{"task/top1": percent, "task/penalty": chosen}."""
        mean, std = train.x.double().mean(0), train.x.double().std(0) + 1e-6
        x, there = ((some.double() - mean) / std for some in (train.x, test.x))
        order = torch.randperm(len(x), generator=generator(seed, "linear"))
        cut = max(1, int(self.held_out * len(x)))
        aside, used = order[:cut], order[cut:]
        figures: dict[str, float] = {}
        for task, classes in train.tasks.items():
            y = train.labels[task]
            scores = []
            start = None
            for penalty in sorted(self.penalties, reverse=True):  # strong first: each starts from the last
                start = _fit(x[used], y[used], classes, penalty, start)
                scores.append((_top1(x[aside], y[aside], start), penalty))
            best = max(scores, key=lambda score: (score[0], score[1]))[1]
            figures[f"{task}/top1"] = _top1(there, test.labels[task], _fit(x, y, classes, best, None))
            figures[f"{task}/penalty"] = best
        return figures


def _fit(x: Tensor, y: Tensor, classes: int, penalty: float, start: Tensor | None) -> Tensor:
    """Weights and biases, [d+1 classes], by L-BFGS; deterministic."""
    x = F.pad(x, (0, 1), value=1.0)
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype) if start is None else start.clone()
    weight.requires_grad_(True)
    solver = torch.optim.LBFGS([weight], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(x @ weight, y) + penalty * weight[:-1].square().sum()
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    return weight.detach()


def _top1(x: Tensor, y: Tensor, weight: Tensor) -> float:
    return ((F.pad(x, (0, 1), value=1.0) @ weight).argmax(1) == y).double().mean().item() * 100


@hookimpl
def sslzoo_probes() -> dict[str, type]:
    """The probes `knn` and `linear`."""
    return {"knn": Knn, "linear": Linear}
