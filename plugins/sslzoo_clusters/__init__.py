"""What is right? The cluster of each patch, by a teacher whose clusters learn online and are equally used."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sslzoo import Batch, Progress, Reading, Schedule, Signal, Student, hookimpl
from sslzoo.keys import Codes, Count
from sslzoo.nn import drop_nothing, follow, full_precision, sinkhorn

Temperature = Annotated[Schedule, Field(gt=0)]
RISING = Schedule.parse({"linear": [0.996, 1.0]})
CAPI = {name: Schedule.parse(value) for name, value in (("balanced", 0.06), ("own", 0.12))}


class Clusters(nn.Module):
    """A teacher that follows the student, and clusters its patches: signal patch [t p], shares of clusters.

    CAPI (Darcet et al. 2025, section 3): cosines to learned directions, made equally used by Sinkhorn over the batch,
    at each patch of the grid by itself. How badly the clusters fit, the cross-entropy of their own softmax with the
    balanced shares, is the signal misfit [u b 1]: give it to the loss `mean`, and the clusters learn from it alone.

    Args:
        clusters: how many.
        momentum: share of the teacher kept at a step.
        temperature: of the shares that are balanced.
        own_temperature: of the softmax that learns to fit them.
        iterations: of Sinkhorn.
        placewise: balance each patch of the grid by itself; else all patches together.
    """

    gated = True  # see TargetGenerator
    whole_batch = True  # shares are balanced over the images of a batch
    trains = True  # the clusters learn, from misfit

    def __init__(
        self,
        student: Student,
        *,
        clusters: Codes = 16384,
        momentum: Annotated[Schedule, Field(ge=0, le=1)] = RISING,
        temperature: Temperature = CAPI["balanced"],
        own_temperature: Temperature = CAPI["own"],
        iterations: Count = 3,
        placewise: bool = True,
    ) -> None:
        super().__init__()
        self.momentum, self.placewise, self.iterations = Schedule.parse(momentum), placewise, iterations
        self.temperature, self.own_temperature = Schedule.parse(temperature), Schedule.parse(own_temperature)
        self.encoder = copy.deepcopy(student.encoder).requires_grad_(False)  # type: ignore[attr-defined]
        self.head = nn.Linear(student.encoder.width, clusters)
        nn.init.normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.outputs = {"patch": Signal("patch", clusters), "misfit": Signal("image", 1)}
        self.train()

    def train(self, mode: bool = True) -> Clusters:
        """Batch norms follow the mode; nothing is dropped at random."""
        super().train(mode)
        drop_nothing(self.encoder, mode)
        return self

    def forward(self, batch: Batch, student: Reading, at: Progress) -> dict[str, Tensor]:
        """{"patch": [t p], "misfit": [u b 1]} of every group a teacher reads."""
        patch, misfit = [], []
        for group in batch.groups.values():
            if group.role == "context":
                continue
            with torch.no_grad():
                tokens = self.encoder(group.pixels.flatten(0, 1)).patches
            with full_precision(tokens.device):
                logits = self.head(F.normalize(tokens.float(), dim=-1))  # s N p
                shares = self.assignments(logits.detach(), at)
                badly = -(shares * (logits / self.own_temperature(at)).log_softmax(-1)).sum(-1).mean(1)
            misfit.append(badly.unflatten(0, group.pixels.shape[:2])[..., None])
            if group.mask is not None:
                patch.append(group.mask.target.flat(group.mask.target.take(group.mask.rows(shares))))
        signals = {"misfit": torch.cat(misfit)} if misfit else {}
        return signals | ({"patch": torch.cat(patch)} if patch else {})

    @torch.no_grad()
    def assignments(self, logits: Tensor, at: Progress) -> Tensor:
        """Balanced shares of clusters: [s N p] -> [s N p]; over the rows of all ranks."""
        rows = logits.transpose(0, 1) if self.placewise else logits.flatten(0, 1)  # (N) n p
        shares = sinkhorn(rows / self.temperature(at), self.iterations)
        return shares.transpose(0, 1) if self.placewise else shares.unflatten(0, logits.shape[:2])

    @torch.no_grad()
    def after_step(self, student: Student, at: Progress, finite: Tensor | None = None) -> None:
        """Moves the teacher: theirs <- m theirs + (1 - m) the student's."""
        own, others = list(self.encoder.parameters()), list(student.encoder.parameters())  # type: ignore[attr-defined]
        follow(own, others, 1.0 - self.momentum(at), finite)

    def metrics(self, at: Progress) -> dict[str, float]:
        """The momentum of this step."""
        return {"momentum": self.momentum(at)}


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """The target generator `clusters`."""
    return {"clusters": Clusters}
