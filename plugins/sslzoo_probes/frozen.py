"""What do frozen features know? k nearest neighbors, and a linear layer; by chunks, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sslzoo import Features, RunError
from sslzoo.keys import Fraction, NotNegative, Positive
from sslzoo.rng import generator

Neighbors = Annotated[int, Field(ge=1, le=2**20)]

CHUNK = 16_384  # rows of training features at a time
QUERIES = 2_048  # rows of test features at a time
WHOLE = 2**26  # numbers of standardized features that are kept, rather than made anew in each pass: 256 MiB


class Knn:
    """Weighted k-NN on normalized features, by cosine (DINO's protocol; Caron et al. 2021, section 4.1).

    Of several k the published protocol reports the one that is best on the test images. Here it is chosen on training
    images, at most CHUNK of them, each told by the others; every k is reported beside it. Figures, for each task in
    percent: top1 of the chosen k, and of each k; and k itself. Computes where the features say, with
    4 * QUERIES * (CHUNK + classes) bytes and k neighbors of each test image beside the features.

    Args:
        k: numbers of neighbors; those above the number of training images are left out.
        temperature: a neighbor votes exp(cosine / temperature).
    """

    protocol = 2  # before, k was the one that was best on the test images

    def __init__(
        self,
        *,
        k: Annotated[tuple[Neighbors, ...], Field(min_length=1)] = (10, 20, 100, 200),
        temperature: Positive = 0.07,
    ) -> None:
        self.k, self.temperature = k, temperature

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float | Tensor]:
        """{"task/top1": percent, "task/k": chosen, "task/top1@10": percent, ..., "task/correct": bool [n]}."""
        ks = sorted({k for k in self.k if k <= len(train.x)}) or [len(train.x)]
        near, index = neighbors(train.x, test.x, max(ks), train.device)
        best = self.chosen(train, ks, seed)
        figures: dict[str, float | Tensor] = {}
        for task, classes in train.tasks.items():
            elected = ballot(train.labels[task][index], self._votes(near), classes, ks)
            right = {k: elected[k] == test.labels[task] for k in ks}
            figures |= {f"{task}/top1": percent(right[best[task]]), f"{task}/correct": right[best[task]]}
            figures |= {f"{task}/k": float(best[task]), **{f"{task}/top1@{k}": percent(right[k]) for k in ks}}
        return figures

    def chosen(self, train: Features, ks: list[int], seed: int) -> dict[str, int]:
        """The k of each task that tells most training images by the others; the smallest of those that tie."""
        if len(ks) == 1 or len(train.x) < 2:
            return dict.fromkeys(train.tasks, ks[0])
        rows = torch.randperm(len(train.x), generator=generator(seed, "knn"))[:CHUNK]
        near, index = neighbors(train.x, train.x[rows], min(max(ks) + 1, len(train.x)), train.device)
        last = (index == rows[:, None]).byte().argsort(dim=1, stable=True)[:, :-1]  # the image itself goes
        near, index = near.gather(1, last), index.gather(1, last)
        best = {}
        for task, classes in train.tasks.items():
            elected = ballot(train.labels[task][index], self._votes(near), classes, ks)
            right = {k: percent(elected[k] == train.labels[task][rows]) for k in ks}
            best[task] = max(ks, key=lambda k: right[k])
        return best

    def _votes(self, near: Tensor) -> Tensor:
        return (near / self.temperature).exp()


def neighbors(train: Tensor, test: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and number of the k nearest rows of `train` [n d] for each row of `test` [m d]: two [m k], on the CPU."""
    queries = F.normalize(test.to(device).float(), dim=1).split(QUERIES)
    near = [torch.zeros(len(some), 0, device=device) for some in queries]
    index = [torch.zeros(len(some), 0, dtype=torch.long, device=device) for some in queries]
    for start in range(0, len(train), CHUNK):
        keys = F.normalize(train[start : start + CHUNK].to(device).float(), dim=1)
        for i, some in enumerate(queries):
            found = (some @ keys.T).topk(min(k, len(keys)), 1)
            both = torch.cat([near[i], found.values], 1)  # those of chunks before first: of equals, the first is kept
            near[i], best = both.topk(min(k, both.shape[1]), 1)
            index[i] = torch.cat([index[i], found.indices + start], 1).gather(1, best)
    return torch.cat(near).cpu(), torch.cat(index).cpu()


def ballot(labels: Tensor, votes: Tensor, classes: int, ks: list[int]) -> dict[int, Tensor]:
    """For each of ks, the class that the first k neighbors elect: their classes [m k], their votes [m k]."""
    elected: dict[int, list[Tensor]] = {k: [] for k in ks}
    for of, weight in zip(labels.split(QUERIES), votes.split(QUERIES), strict=True):
        score, counted = torch.zeros(len(of), classes), 0
        for k in ks:
            score.scatter_add_(1, of[:, counted:k], weight[:, counted:k])
            elected[k].append(score.argmax(1))
            counted = k
    return {k: torch.cat(found) for k, found in elected.items()}


class Linear:
    """Multinomial logistic regression on standardized features, its L2 penalty chosen on a part of the training set.

    Figures, for each task in percent: top1; and the chosen penalty. L-BFGS on all rows, by chunks, in fp32 with sums
    and weights in fp64. Computes where the features say, with one copy of the training features there.

    Args:
        penalties: L2 penalties tried, on weights, with the mean cross-entropy.
        held_out: share of the training images that choose between them.
    """

    def __init__(
        self,
        *,
        penalties: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (1e-5, 1e-4, 1e-3, 1e-2),
        held_out: Fraction = 0.2,
    ) -> None:
        self.penalties, self.held_out = penalties, held_out

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float | Tensor]:
        """{"task/top1": percent, "task/penalty": chosen, "task/correct": bool [n]}."""
        if len(train.x) < 2:
            raise RunError("the probe linear needs 2 training images, one of them to choose its penalty; found 1")
        x = Rows(train.x.to(train.device))
        there = Rows(test.x.to(train.device), None, x.moments)
        order = torch.randperm(len(train.x), generator=generator(seed, "linear")).to(train.device)
        cut = max(1, int(self.held_out * len(order)))
        aside, used = x.part(order[:cut]), x.part(order[cut:])
        figures: dict[str, float | Tensor] = {}
        for task, classes in train.tasks.items():
            y = train.labels[task].to(train.device)
            scores, start = [], None
            for penalty in sorted(self.penalties, reverse=True):  # strong first: each starts from the last
                start = fit(used, y[order[cut:]], classes, penalty, start)
                scores.append((percent(aside.answers(start) == y[order[:cut]]), penalty))
            best = max(scores)[1]
            weight = fit(x, y, classes, best, start)
            right = there.answers(weight).cpu() == test.labels[task]
            figures |= {f"{task}/correct": right, f"{task}/top1": percent(right)}
            figures[f"{task}/penalty"] = best
        return figures


class Rows:
    """Standardized features with a column of ones, all or those `of` some rows; as a whole only where that is small.

    `bare` ones are taken as they are: not standardized, and without a column of ones.
    """

    def __init__(
        self,
        x: Tensor,
        of: Tensor | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
        *,
        bare: bool = False,
    ) -> None:
        self.x, self.of, self.bare = x, of, bare
        self.width = x.shape[1] + (not bare)
        self.moments = _moments(x) if moments is None and not bare else moments
        self.count = len(x) if of is None else len(of)
        self.whole = self._ready(slice(None)) if self.count * x.shape[1] <= WHOLE else None

    def part(self, of: Tensor) -> Rows:
        """Some of the rows, standardized with the moments of all."""
        return Rows(self.x, of, self.moments, bare=self.bare)

    def chunks(self) -> Iterator[Tensor]:
        """The rows in order: [at most CHUNK, width] fp32."""
        for start in range(0, self.count, CHUNK):
            here = slice(start, start + CHUNK)
            yield self._ready(here) if self.whole is None else self.whole[here]

    def answers(self, weight: Tensor) -> Tensor:
        """The class that weights [width classes] give each row."""
        return torch.cat([(rows @ weight.float()).argmax(1) for rows in self.chunks()])

    def _ready(self, here: slice) -> Tensor:
        rows = self.x[here] if self.of is None else self.x[self.of[here]]
        if self.moments is None:
            return rows.float()
        mean, std = self.moments
        return F.pad((rows.float() - mean) / std, (0, 1), value=1.0)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, summed in fp64: two [d] in fp32."""
    parts = x.split(CHUNK)
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(x)
    squares = torch.stack([(part.double() - mean).square().sum(0) for part in parts]).sum(0)
    return mean.float(), ((squares / max(1, len(x) - 1)).sqrt() + 1e-6).float()


def fit(x: Rows, y: Tensor, classes: int, penalty: float, start: Tensor | None) -> Tensor:
    """Weights and biases [d+1 classes] for classes y [n]: least mean cross-entropy + penalty * sum of squared weights.

    Of bare rows, weights alone [d classes]. Deterministic; the gradient is written out, so that memory is a chunk's.
    """
    weight = torch.zeros(x.width, classes, dtype=torch.double, device=y.device) if start is None else start
    weight, wide = weight.clone().requires_grad_(True), x.x.shape[1]
    solver = torch.optim.LBFGS([weight], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    @torch.no_grad()
    def loss() -> Tensor:
        value, grad = torch.zeros((), dtype=torch.double, device=y.device), torch.zeros_like(weight)
        for rows, told in zip(x.chunks(), y.split(CHUNK), strict=True):
            log = (rows @ weight.float()).log_softmax(1)
            value -= log.gather(1, told[:, None]).double().sum()
            share = log.exp_()
            share.scatter_add_(1, told[:, None], torch.full_like(share[:, :1], -1.0))
            grad += rows.T @ share
        grad /= len(y)
        grad[:wide] += 2 * penalty * weight[:wide]
        weight.grad = grad
        return value / len(y) + penalty * weight[:wide].square().sum()

    solver.step(loss)  # type: ignore[arg-type]
    return weight.detach()


def percent(right: Tensor) -> float:
    """The share of truths, in percent."""
    return right.double().mean().item() * 100
