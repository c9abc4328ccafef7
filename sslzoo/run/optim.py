"""How do weights move? Groups by pattern, schedules of their numbers, and steps that are whole or none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sslzoo.contracts import Encoder
from sslzoo.progress import Progress
from sslzoo.run.parallel import full_tensor
from sslzoo.step import Method

if TYPE_CHECKING:
    from sslzoo.recipe.sections import OptimKeys


def trainable(method: Method) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter that learns, by the name recipes use: encoder.*, predictor.*, targets.NAME.*, losses.NAME.*."""
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            yield name.removeprefix("student."), parameter


def groups(method: Method, keys: OptimKeys) -> list[dict[str, Any]]:
    """Torch's parameter groups: parameters of one group have the same factors.

    A group holds beside `params` the factors of all patterns that match (`factors`), that of its depth (`layer`) and
    whether weights decay at all (`decays`).
    """
    found: dict[Any, list[nn.Parameter]] = {}
    layers = layer_factors(method, keys.layer_decay)
    for name, parameter in trainable(method):
        patterns = tuple(pattern for pattern in keys.groups if fnmatchcase(name, pattern))
        decays = keys.decay_vectors or parameter.ndim > 1
        found.setdefault((patterns, layers.get(name, 1.0), decays), []).append(parameter)
    return [
        {"params": params, "factors": [keys.groups[one] for one in patterns], "layer": layer, "decays": decays}
        for (patterns, layer, decays), params in found.items()
    ]


def layer_factors(method: Method, decay: float) -> dict[str, float]:
    """What multiplies the learning rate of the encoder's parameters, by name (BEiT, Bao et al. 2021).

    decay^(depth - i) in block i = 0 .. depth-1; what is made before the blocks counts as block -1, what comes after
    them as the rest of the method: 1.
    """
    encoder, found, passed = method.student.encoder, {}, False
    depth, numbers = len(encoder.blocks), block_numbers(encoder)
    for name, parameter in encoder.named_parameters():  # type: ignore[attr-defined]
        passed = passed or parameter in numbers
        found[f"encoder.{name}"] = decay ** (depth - numbers.get(parameter, depth if passed else -1))
    return found


def block_numbers(encoder: Encoder) -> dict[nn.Parameter, int]:
    """The block that each parameter belongs to, by what it is: names are the encoder's own affair."""
    return {parameter: number for number, block in enumerate(encoder.blocks) for parameter in block.parameters()}


def set_schedules(optimizer: torch.optim.Optimizer, keys: OptimKeys, at: Progress) -> dict[str, float]:
    """Sets learning rates and weight decays of this step; returns both, before factors."""
    lr, decay = keys.lr(at), keys.weight_decay(at)
    for group in optimizer.param_groups:
        factor = math.prod(one.lr(at) for one in group["factors"])
        group["lr"], group["frozen"] = lr * factor * group["layer"], factor == 0
        group["weight_decay"] = group["decays"] * decay * math.prod(one.weight_decay(at) for one in group["factors"])
    return {"lr": lr, "weight_decay": decay}


def drop_frozen(optimizer: torch.optim.Optimizer) -> None:
    """Takes the gradients of what is frozen in this step away, as DINO's code does; before the others are clipped."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["frozen"] else ():
            parameter.grad = None


def clip(optimizer: torch.optim.Optimizer, most: float | None, each: bool = False) -> Tensor:
    """Clips gradients to norm `most`, over all parameters or `each` tensor apart (as DINO does); returns the norm.

    The norm is that of all gradients before clipping, 0-d, and stays on the device.
    """
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    params = [parameter for parameter in every if parameter.grad is not None]
    grads = [parameter.grad for parameter in params if parameter.grad is not None]
    norm = full_tensor(torch.nn.utils.get_total_norm(grads))
    if most is not None and each and grads:
        norms = torch._foreach_norm(grads)  # type: ignore[attr-defined]
        torch._foreach_mul_(grads, [torch.clamp(most / (one + 1e-6), max=1.0) for one in norms])  # type: ignore[attr-defined]
    elif most is not None:
        torch.nn.utils.clip_grads_with_norm_(params, most, norm)
    return norm


def step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """One step, or none where `finite` (0-d bool) is false.

    Torch's fused optimizers decide on the device, and the CPU does not wait; for others it does, as torch's GradScaler.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined] - read by fused kernels
        optimizer.step()
    elif finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def follow(method: Method, at: Progress, finite: Tensor) -> None:
    """Teachers follow here, and only here; not after a step that was not `finite`."""
    for target in method.targets.values():
        if getattr(target, "gated", False):
            target.after_step(method.student, at, finite)
            continue
        before = keep([*target.parameters(), *target.buffers()])
        target.after_step(method.student, at)
        undo(before, ~finite)


Kept = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def keep(tensors: Iterable[Tensor]) -> Kept:
    """Tensors with copies of what they hold now."""
    own = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    return [(x, x.clone()) for x in own]


@torch.no_grad()
def undo(kept: Kept, wrong: Tensor) -> None:
    """Puts tensors back to what they held, where `wrong` (0-d bool); the device decides, the CPU does not wait."""
    for now, before in kept:
        torch.where(wrong, before, now, out=now)
