"""Which encoders does a method have, which of them is meant, and how is one asked?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.errors import RunError
from sslzoo.run.compiling import eager
from sslzoo.step import Method


def encoders(method: Method) -> dict[str, nn.Module]:
    """Every encoder that can be evaluated: those of target generators by name (teachers), and `student`, the last."""
    owners: dict[str, Any] = dict(method.targets.items())
    found = {name: owner.encoder for name, owner in owners.items() if hasattr(owner, "encoder")}
    return found | {"student": method.student.encoder}  # type: ignore[dict-item]


def network_of(method: Method, network: str) -> str:
    """The name of the network that `auto` means, or the one that was named; raises RunError if it is not there."""
    known = encoders(method)
    if network == "auto":
        return next(iter(known))
    if network not in known:
        raise RunError(f"no network is called {network!r}; there is: {', '.join(known)}")
    return network


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


@torch.no_grad()
def summaries(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """An encoder's word for each image of pixels [n 3 H W], in eval mode: [n d] in float32, on its device."""
    device = device_of(encoder)
    with evaluating(encoder), eager():
        return torch.cat([encoder(some.to(device)).summary.float() for some in pixels.split(64)])


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters lie."""
    return next(module.parameters()).device
