"""What is right? The pixels themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo import Batch, Progress, Reading, Signal, Student, hookimpl
from sslzoo.nn import pixels_of, target_pixels


class Pixels(nn.Module):
    """Pixels of the target patches, each patch as (row, column, channel) (He et al. 2021, section 3).

    Args:
        normalize: subtract each patch's mean and divide by its deviation (unbiased, 1e-6 added to the variance).
    """

    def __init__(self, student: Student, *, normalize: bool = True) -> None:
        super().__init__()
        self.outputs = {"patch": Signal("patch", pixels_of(student.encoder))}
        self.patch: tuple[int, int] = student.encoder.patch  # type: ignore[attr-defined]
        self.normalize = normalize

    @torch.no_grad()
    def forward(self, batch: Batch, student: Reading, at: Progress) -> dict[str, Tensor]:
        """{"patch": [t 3*ph*pw]} of every group with a mask that a teacher reads."""
        x = target_pixels(batch, self.patch)
        if x is None:
            return {}
        if self.normalize:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
        return {"patch": x}

    def after_step(self, student: Student, at: Progress) -> None:
        """Pixels do not learn."""


@hookimpl
def sslzoo_targets() -> dict[str, type]:
    """The target generator `pixels`."""
    return {"pixels": Pixels}
