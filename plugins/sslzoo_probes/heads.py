"""What do linear heads reach, trained as published? Many at once, over features, rates and penalties, by SGD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Features, RunError
from sslzoo.keys import BelowOne, Fraction, NotNegative, Positive
from sslzoo.rng import derive_seed, generator
from sslzoo_probes.frozen import percent

Pool = Literal["mean", "mean4", "class", "class4"]


@dataclass(frozen=True)
class Kind:
    """What tells a head from the others."""

    features: str
    norm: bool
    lr: float
    penalty: float


class Heads:
    """Linear heads over frozen features, all trained in one pass; chosen on held-out training images.

    The protocol of VISSL that the I-JEPA paper follows (Assran et al. 2023, appendix A): features of the last block or
    the last four, with the final norm on each; means over patches, or the class token; a linear layer, or batch norm
    and a linear layer; SGD with Nesterov momentum, rates per 256 images, divided by 10 at 0.3, 0.6 and 0.9 of the
    epochs, or after the epochs that `schedule` lists, or a cosine. No decay on biases and batch norms. By default it
    differs in that features are extracted once, without augmentation, in SGD where the paper states LARS (VISSL's own
    settings have SGD for ViT-B and L), and in steps of 256 images, the paper's of 16,384; `augment`, `optimizer` and
    `batch` have the published ways. The chosen head was trained without the held-out images and is not fitted again.

    Figures, for each task in percent: top1 of the head that was best on held-out images, with `held-out`, its score
    there, and its lr, penalty, norm (1 or 0) and features (number in the list); and best-of-K, the best of all K heads
    on the test images, which is what papers report, and too high for having been chosen there.

    Args:
        features: mean (over patches of the last block), mean4 (of the last four, side by side), class, class4.
        norms: batch norm before the linear layer: no, yes, or both.
        lrs: learning rates tried, for 256 images.
        penalties: weight decays tried.
        epochs: passes over the training images.
        batch: images of a step.
        schedule: how rates fall: steps, cosine, or a list of epochs after each of which they are divided by 10.
        min_lr: rate at the end of a cosine, for 256 images.
        optimizer: sgd (with Nesterov momentum), or lars (timm's; rates of weights follow their norms).
        momentum: of either.
        augment: extract the training features anew in each epoch, through `evaluate.augment`: as many passes of the
            encoder as epochs. Heads are chosen on features without it.
        held_out: share of the training images that choose between heads, and train none.
    """

    reads_x = False  # but pools

    def __init__(
        self,
        *,
        features: Annotated[tuple[Pool, ...], Field(min_length=1)] = ("mean", "mean4"),
        norms: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True),
        lrs: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.001, 0.01, 0.05),
        penalties: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0.0, 5e-4),
        epochs: Annotated[int, Field(ge=1, le=10**5)] = 50,
        batch: Annotated[int, Field(ge=2, le=2**20)] = 256,
        schedule: Literal["steps", "cosine"] | tuple[Positive, ...] = "steps",
        min_lr: NotNegative = 0.0,
        optimizer: Literal["sgd", "lars"] = "sgd",
        momentum: BelowOne = 0.9,
        augment: bool = False,
        held_out: Fraction = 0.1,
    ) -> None:
        if late := [epoch for epoch in schedule if epoch >= epochs] if isinstance(schedule, tuple) else []:
            raise ValueError(f"schedule: found {late[0]:g}, and there are {epochs} epochs")
        if min_lr > min(lrs):
            raise ValueError(f"min_lr: found {min_lr:g}, above the rate {min(lrs):g} of lrs")
        if min_lr and schedule != "cosine":
            raise ValueError("min_lr is the end of a cosine; set schedule: cosine")
        self.min_lr = min_lr * batch / 256
        self.falls = schedule if isinstance(schedule, tuple) else [share * epochs for share in (0.3, 0.6, 0.9)]
        self.pools = tuple(dict.fromkeys(features))
        self.kinds = [Kind(*one) for one in product(self.pools, dict.fromkeys(norms), lrs, penalties)]
        self.epochs, self.batch, self.schedule, self.momentum = epochs, batch, schedule, momentum
        self.optimizer, self.augment, self.held_out = optimizer, augment, held_out

    def __call__(self, train: Features, test: Features, seed: int) -> dict[str, float | Tensor]:
        """{"task/top1": percent, "task/held-out": ..., "task/best-of-K": ..., "task/correct": bool [n], ...}."""
        order = torch.randperm(len(train.x), generator=generator(seed, "heads"))
        cut = max(1, int(self.held_out * len(order)))
        aside, used = order[:cut], order[cut:]
        if len(used) < 2:
            raise RunError(f"the probe heads needs 3 training images, one of them held out; found {len(order)}")
        figures: dict[str, float | Tensor] = {}
        for task, classes in train.tasks.items():
            heads = list(zip(self.trained(train, task, used, classes, seed), self.kinds, strict=True))
            there = [told(head, train.pools[kind.features][aside], train.device) for head, kind in heads]
            chosen = [percent(one == train.labels[task][aside]) for one in there]
            right = [told(head, test.pools[kind.features], train.device) == test.labels[task] for head, kind in heads]
            best = chosen.index(max(chosen))
            kind = self.kinds[best]
            figures |= {f"{task}/top1": percent(right[best]), f"{task}/correct": right[best]}
            figures |= {f"{task}/held-out": chosen[best], f"{task}/best-of-{len(right)}": max(map(percent, right))}
            figures |= {f"{task}/lr": kind.lr, f"{task}/penalty": kind.penalty, f"{task}/norm": float(kind.norm)}
            figures[f"{task}/features"] = float(self.pools.index(kind.features))
        return figures

    def trained(self, train: Features, task: str, used: Tensor, classes: int, seed: int) -> list[nn.Module]:
        """A head of each kind, trained on some of the rows; none knows of the others."""
        heads = [_head(kind, train.pools[kind.features].shape[1], classes, seed) for kind in self.kinds]
        for head in heads:
            head.to(train.device).train()
        groups = [group for kind, head in zip(self.kinds, heads, strict=True) for group in self._groups(kind, head)]
        solver = self._solver(groups)
        rates = [group["lr"] for group in solver.param_groups]
        for epoch in range(self.epochs):
            pools = self._seen(train, derive_seed(seed, "heads", "augment", epoch))
            for done, rows in self._batches(used, epoch, seed):
                for group, rate in zip(solver.param_groups, rates, strict=True):
                    group["lr"] = self.min_lr + (rate - self.min_lr) * self._factor(done)
                x = {name: pools[name][rows].to(train.device).float() for name in self.pools}
                y = train.labels[task][rows].to(train.device)
                solver.zero_grad()
                logits = [head(x[kind.features]) for kind, head in zip(self.kinds, heads, strict=True)]
                torch.stack([F.cross_entropy(one, y) for one in logits]).sum().backward()
                solver.step()
        return heads

    def _seen(self, train: Features, seed: int) -> Mapping[str, Tensor]:
        """Training features of an epoch."""
        if not self.augment:
            return train.pools
        if train.images is None or not train.images.augmented:
            raise RunError("augment: the section evaluate needs a key augment, a view with randomness")
        return train.images.pools(self.pools, seed)

    def _solver(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.optimizer == "lars":
            return Lars([one | {"always_adapt": one["adapt"]} for one in groups], momentum=self.momentum)  # pyright: ignore
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.momentum > 0)

    def _batches(self, used: Tensor, epoch: int, seed: int) -> Iterator[tuple[float, Tensor]]:
        """The share of training that is done, and the rows of a step; a last row alone is left out (batch norm)."""
        shuffled = used[torch.randperm(len(used), generator=generator(seed, "heads", epoch))]
        batches = [rows for rows in shuffled.split(self.batch) if len(rows) > 1]
        for number, rows in enumerate(batches):
            yield (epoch + number / len(batches)) / self.epochs, rows

    def _factor(self, done: float) -> float:
        if self.schedule == "cosine":
            return 0.5 * (1 + float(torch.tensor(done * torch.pi).cos()))
        return 0.1 ** sum(done * self.epochs >= epoch - 1e-9 for epoch in self.falls)

    def _groups(self, kind: Kind, head: nn.Module) -> Iterator[dict[str, Any]]:
        lr = kind.lr * self.batch / 256
        matrices, vectors = ([p for p in head.parameters() if (p.ndim > 1) is many] for many in (True, False))
        yield {"params": matrices, "lr": lr, "weight_decay": kind.penalty, "adapt": True}
        yield {"params": vectors, "lr": lr, "weight_decay": 0.0, "adapt": False}


def _head(kind: Kind, width: int, classes: int, seed: int) -> nn.Module:
    """A head as torch starts a linear layer, from a generator of its own: the same whatever stands beside it."""
    linear, bound = nn.Linear(width, classes), width**-0.5
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator(seed, "head", kind.features, kind.norm))
    return nn.Sequential(nn.BatchNorm1d(width), linear) if kind.norm else linear


@torch.no_grad()
def told(head: nn.Module, x: Tensor, device: torch.device, rows: int = 16_384) -> Tensor:
    """The class that a head tells each row: [n], on the CPU."""
    head.eval()
    return torch.cat([head(some.to(device).float()).argmax(1).cpu() for some in x.split(rows)])
