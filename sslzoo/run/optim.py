"""How do weights move? Groups by pattern, schedules of their numbers, and steps that are whole or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sslzoo.progress import Progress
from sslzoo.run.parallel import full_tensor
from sslzoo.step import Method

if TYPE_CHECKING:
    from sslzoo.recipe.recipe import Factors, Optim


def trainable(method: Method) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter that learns, by the name recipes use: encoder.*, predictor.*, targets.NAME.*, losses.NAME.*."""
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            yield name.removeprefix("student."), parameter


def factors(name: str, patterns: Mapping[str, Factors]) -> tuple[float, float]:
    """What multiplies the learning rate and the weight decay of a parameter: all patterns that match its name."""
    lr = decay = 1.0
    for pattern, factor in patterns.items():
        if fnmatchcase(name, pattern):
            lr, decay = lr * factor.lr, decay * factor.weight_decay
    return lr, decay


def make(method: Method, optim: Optim) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused, one group for each pair of factors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(method):
        groups.setdefault(factors(name, optim.groups), []).append(parameter)
    listed = [{"params": params, "lr_factor": lr, "decay_factor": decay} for (lr, decay), params in groups.items()]
    if optim.use == "sgd":
        momentum = {"momentum": optim.momentum, "nesterov": optim.nesterov}
        optimizer = torch.optim.SGD(listed, lr=0.0, fused=True, **momentum)
        for group in optimizer.param_groups if optim.momentum else ():
            for parameter in group["params"]:  # torch makes it in the first step, empty if that step is skipped
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(listed, lr=0.0, betas=optim.betas, eps=optim.eps, fused=True)


def set_schedules(optimizer: torch.optim.Optimizer, optim: Optim, at: Progress) -> dict[str, float]:
    """Sets learning rates and weight decays of this step; returns both, before factors."""
    lr, decay = optim.lr(at), optim.weight_decay(at)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        group["weight_decay"] = decay * group["decay_factor"]
    return {"lr": lr, "weight_decay": decay}


def clip(method: Method, most: float | None, each: bool = False) -> Tensor:
    """Clips gradients to norm `most`, over all parameters or `each` tensor apart (as DINO does); returns the norm.

    The norm is that of all gradients before clipping, 0-d, and stays on the device.
    """
    params = [parameter for _, parameter in trainable(method) if parameter.grad is not None]
    grads = [parameter.grad for parameter in params if parameter.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(grads))
    if most is not None and each:
        norms = torch._foreach_norm(grads)  # type: ignore[attr-defined]
        torch._foreach_mul_(grads, [torch.clamp(most / (one + 1e-6), max=1.0) for one in norms])  # type: ignore[attr-defined]
    elif most is not None:
        torch.nn.utils.clip_grads_with_norm_(params, most, norm)
    return norm


def step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """One step, or none where `finite` (0-d bool) is false; the device decides, the CPU does not wait."""
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined] - read by fused kernels, as GradScaler sets it
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def follow(method: Method, at: Progress, finite: Tensor) -> None:
    """Teachers follow here, and only here; not after a step that was not `finite`."""
    for target in method.targets.values():
        before = keep([*target.parameters(), *target.buffers()])
        target.after_step(method.student, at)
        undo(before, ~finite)


Kept = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def keep(tensors: Iterable[Tensor]) -> Kept:
    """Tensors with copies of what they hold now."""
    own = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    return list(zip(own, torch._foreach_clone(own), strict=True)) if own else []  # type: ignore[attr-defined]


@torch.no_grad()
def undo(kept: Kept, wrong: Tensor) -> None:
    """Puts tensors back to what they held, where `wrong` (0-d bool); the device decides, the CPU does not wait."""
    for now, before in kept:
        torch.where(wrong, before, now, out=now)
