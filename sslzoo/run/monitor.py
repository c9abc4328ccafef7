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


def rank_of(method: Method, pixels: Tensor, cast: AbstractContextManager[Any]) -> float:
    """RankMe of the summaries of monitored images, from the teacher where there is one."""
    with cast:
        found = summaries(evaluated_encoder(method), pixels)
    return rankme(found).item()


@torch.no_grad()
def summaries(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """An encoder's word for each image of pixels [n 3 H W], in eval mode: [n d] in float32, on its device."""
    device = device_of(encoder)
    with evaluating(encoder), eager():
        return torch.cat([encoder(some.to(device)).summary.float() for some in pixels.split(64)])


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters lie."""
    return next(module.parameters()).device


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
    """The encoder to evaluate: of a named target generator, of the student, or of the first teacher (auto).

    Raises:
        RunError: there is no such network.
    """
    return encoders(method)[network_of(method, network)]


def kind(network: str) -> str:
    """Teacher or student, so that networks of one kind are compared whatever a recipe calls them."""
    return "student" if network == "student" else "teacher"


def of_kind(method: Method, wanted: str) -> list[str]:
    """Names of the networks that are of a kind: teacher, student or all."""
    return [name for name in encoders(method) if wanted in ("all", kind(name))]


def network_of(method: Method, network: str) -> str:
    """The name of the network that `auto` means, or the one that was named; raises RunError if it is not there."""
    known = encoders(method)
    if network == "auto":
        return next(iter(known))
    if network not in known:
        raise RunError(f"no network is called {network!r}; there is: {', '.join(known)}")
    return network


def encoders(method: Method) -> dict[str, nn.Module]:
    """Every encoder that can be evaluated: those of target generators by name (teachers), and `student`, the last."""
    owners: dict[str, Any] = dict(method.targets.items())
    found = {name: owner.encoder for name, owner in owners.items() if hasattr(owner, "encoder")}
    return found | {"student": method.student.encoder}  # type: ignore[dict-item]
