"""Which processes train together? The process group, data parallel, and the three sums that losses may use.

`gather`, `all_mean` and `all_sum` pass gradients and do nothing on one process. With them a loss is written for one
process: summing locally and averaging gradients over ranks (what data parallel does) gives the gradient of the loss of
the whole batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslzoo.errors import RunError


@dataclass(frozen=True)
class World:
    """Where this process stands among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join(device: str | None = None) -> World:
    """Joins the process group a launcher describes in the environment (RANK, WORLD_SIZE, LOCAL_RANK), if there is one.

    Raises:
        RunError: the launcher's environment is incomplete, there are more processes than GPUs, or the group could
            not be formed. There is no going on alone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not {"RANK", "LOCAL_RANK"} <= set(os.environ):
        raise RunError("WORLD_SIZE is set but RANK or LOCAL_RANK is not: start with torchrun, or unset WORLD_SIZE")
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local)
    if size > 1:
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", device_id=_id(chosen))
        except Exception as error:
            raise RunError(f"rank {rank} of {size} could not join the others: {error}") from error
    return World(rank, size, local, chosen)


def leave() -> None:
    """Leaves the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device(wanted: str | None, local: int) -> torch.device:
    if wanted == "cpu" or (wanted is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(f"device {wanted}: no GPU is visible here")
    if local >= torch.cuda.device_count():
        raise RunError(f"local rank {local} has no GPU of its own: {torch.cuda.device_count()} visible here")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _id(device: torch.device) -> torch.device | None:
    return device if device.type == "cuda" else None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - autograd names it
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[dist.get_rank()]


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, in order of rank: [n ...] -> [ranks*n ...]; every rank must give equally many."""
    return x if world_size() == 1 else _Gather.apply(x)  # type: ignore[return-value]


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks."""
    return x if world_size() == 1 else _AllSum.apply(x)  # type: ignore[return-value]


def all_mean(x: Tensor) -> Tensor:
    """Mean over ranks."""
    return all_sum(x) / world_size()
