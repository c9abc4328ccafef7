"""Target generator `example`: a teacher that follows the student slowly and says what it sees at hidden patches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo import Batch, Progress, Reading, Schedule, Signal, Student, hookimpl

MOMENTUM = Schedule.parse({"linear": [0.99, 1.0]})


class Example(nn.Module):
    """A moving average of the student's encoder.

    Args:
        momentum: share of itself that the teacher keeps in each step.
    """

    def __init__(self, student: Student, *, momentum: Schedule = MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        self.encoder: Any = copy.deepcopy(student.encoder)
        self.encoder.requires_grad_(False)
        self.outputs = {"patch": Signal("patch", student.encoder.width)}

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> Mapping[str, Tensor]:
        """Tokens of the whole view at target patches: {"patch": [t e]}."""
        rows = []
        for group in batch.groups.values():
            if group.mask is None:
                continue
            tokens = self.encoder(group.pixels.flatten(0, 1))  # every patch is seen
            target = group.mask.target
            rows.append(target.flat(target.take(group.mask.rows(tokens.patches))))
        return {"patch": torch.cat(rows)}

    @torch.no_grad()
    def after_step(self, student: Student, at: Progress) -> None:
        """Follows the student: here, and only here."""
        theirs: Any = student.encoder
        for mine, its in zip(self.encoder.parameters(), theirs.parameters(), strict=True):
            mine.lerp_(its, 1 - self.momentum(at))


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
