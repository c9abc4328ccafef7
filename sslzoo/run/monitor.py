"""Is the encoder collapsing? RankMe of a fixed batch of training images, during the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.contracts import Dataset, View
from sslzoo.errors import RunError
from sslzoo.run.compiling import eager
from sslzoo.run.data import first_views
from sslzoo.run.metrics import rankme
from sslzoo.step import Method


def monitor_pixels(data: Dataset, view: View, count: int, seed: int) -> Tensor:
    """Views of the first images of the training set, always the same: [n 3 H W].

    Raises:
        RunError: none of them can be read.
    """
    pixels = first_views(data, view, count, count, seed)
    if not len(pixels):
        raise RunError(f"none of the first {count} images could be read")
    return pixels


@torch.no_grad()
def rank_of(method: Method, pixels: Tensor, device: torch.device, cast: AbstractContextManager[Any]) -> float:
    """RankMe of the summaries of monitored images, from the teacher where there is one."""
    encoder = evaluated_encoder(method)
    with evaluating(encoder), cast, eager():
        found = [encoder(some.to(device)).summary.float() for some in pixels.split(64)]
    return rankme(torch.cat(found)).item()


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[nn.Module]:
    """An encoder in eval mode; then each of its modules is as it was (a teacher's are mixed: it drops nothing)."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield encoder
    finally:
        for module, mode in modes:
            module.training = mode


def evaluated_encoder(method: Method, network: str = "auto") -> nn.Module:
    """The encoder to evaluate: of a named target generator, of the student, or of the first teacher (auto)."""
    owners: dict[str, Any] = {
        name: target.encoder for name, target in method.targets.items() if hasattr(target, "encoder")
    }
    owners["student"] = method.student.encoder
    if network == "auto":
        return next(iter(owners.values()))
    if network not in owners:
        raise RunError(f"no network is called {network!r}; there is: {', '.join(owners)}")
    return owners[network]
