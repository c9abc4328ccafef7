"""Which processes train together? The process group, data parallel, and the three sums that losses may use.

`gather`, `all_mean` and `all_sum` pass gradients and do nothing on one process. With them a loss is written for one
process: summing locally and averaging gradients over ranks (what data parallel does) gives the gradient of the loss of
the whole batch.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sslzoo.errors import RunError


@dataclass(frozen=True)
class World:
    """Where this process stands among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    launcher: str = "alone"  # alone, torchrun or srun

    def __str__(self) -> str:
        if self.size == 1:
            return f"one process, on {self.device}"
        return f"{self.size} processes started by {self.launcher}, on {self.device.type}"

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def join(device: str | None = None, processes: int | None = None) -> World:
    """Joins the processes that a launcher started: torchrun, or srun on SLURM; or finds itself alone.

    `processes` is how many there should be, if that is known.

    Raises:
        RunError: the launcher's environment is incomplete or says another number of processes, two processes have one
            GPU, or the group could not be formed. There is no going on alone.
    """
    launcher, rank, size, local = launched()
    if processes is not None and size != processes:
        raise RunError(f"{processes} processes were asked for, but {launcher} started {size}")
    chosen = _device(device, local)
    if size > 1:
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", device_id=_id(chosen))
        except Exception as error:
            raise RunError(f"rank {rank} of {size} could not join the others: {error}") from error
        _see_distinct_devices(chosen)
    return World(rank, size, local, chosen, launcher)


def launched() -> tuple[str, int, int, int]:
    """Who started this process, its rank, how many there are, and its rank on this node; from the environment alone.

    Under srun, sets the address where the processes meet: the job's first node, and a port from the job's number.

    Raises:
        RunError: the environment is incomplete.
    """
    env = os.environ
    if int(env.get("WORLD_SIZE", "1")) > 1:
        if not {"RANK", "LOCAL_RANK"} <= set(env):
            raise RunError("WORLD_SIZE is set but RANK or LOCAL_RANK is not: start with torchrun, or unset WORLD_SIZE")
        return "torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"])
    # A batch script has no step, and an interactive shell a step with a number near 2 ** 32.
    in_step = "SLURM_STEP_ID" in env and int(env["SLURM_STEP_ID"]) < 2**31
    if in_step and int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        meeting = {
            "MASTER_ADDR": _first_host(env["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": _port(int(env["SLURM_JOB_ID"])),
        }
        meeting |= {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"]}
        for name, value in meeting.items():
            env.setdefault(name, str(value))
        return "srun", int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"])
    return "alone", 0, 1, 0


def _first_host(nodes: str) -> str:
    """The first of a list such as gpu[07-09,12],login1."""
    head, bracket, rest = nodes.partition(",")[0].partition("[")
    return head + re.split(r"[-,\]]", rest)[0] if bracket else head


def _port(job: int) -> int:
    """A port below the ephemeral ones; jobs that share a node differ."""
    return 12000 + job % 20000


def _see_distinct_devices(device: torch.device) -> None:
    if device.type != "cuda":
        return
    own = (socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid))
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, own)
    shared = sorted({f"{host} {uuid}" for host, uuid in found if found.count((host, uuid)) > 1})
    if shared:
        raise RunError(f"several processes were given one GPU: {', '.join(shared)}; ask for one process a GPU")


def transformer_blocks(method: nn.Module) -> Iterator[nn.Module]:
    """Every block of a method: what stands in a list called `blocks`, wherever it is."""
    for module in method.modules():
        listed = getattr(module, "blocks", None)
        yield from listed if isinstance(listed, nn.ModuleList) else ()


def copies(size: int, shard: int) -> int:
    """How many whole copies of the weights `size` processes hold, if each is split over `shard` of them.

    Raises:
        RunError: they cannot be grouped so.
    """
    if size % shard:
        raise RunError(f"run.shard: {size} processes cannot be grouped by {shard}")
    return size // shard


def data_parallel(method: nn.Module, world: World, shard: int = 1, unused: bool = False) -> nn.Module:
    """The method, ready to train on all ranks: copies (DDP), or each parameter split over `shard` ranks (FSDP2).

    With fewer shards than ranks, every `shard` neighbours hold one copy together. Gradients are means over all ranks.

    Raises:
        RunError: the ranks cannot be grouped so.
    """
    shape = copies(world.size, shard), shard
    if shard > 1:
        mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))
        for block in transformer_blocks(method):
            fully_shard(block, mesh=mesh)
        # What is in no block is small, and stays whole from the forward to the end of the backward. Encoders are called
        # on their own too, so each gathers its own.
        for name, module in method.named_modules():
            if name.rpartition(".")[2] == "encoder":
                fully_shard(module, mesh=mesh, reshard_after_forward=False)
        fully_shard(method, mesh=mesh)
        return method
    if world.size == 1:
        return method
    # Buffers are equal on every rank by contract, so they need not travel before each step. Looking for unused
    # parameters also keeps buckets as they are; rebuilt after the first step, as is usual, they would sum in another
    # order after a restart.
    known = inspect.signature(DistributedDataParallel).parameters
    still: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(
        method, gradient_as_bucket_view=True, find_unused_parameters=unused or world.device.type == "cpu", **still
    )


def no_sync(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients meet once a step, in the backward of the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def full_tensor(x: Tensor) -> Tensor:
    """The value of a tensor that may be split over ranks; all ranks must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def split_as(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, placed and split as another; every rank has the same, so nothing is sent."""
    x = x.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


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
        method = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(method, x.contiguous())
        return torch.cat(method)

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


def barrier() -> None:
    """Waits until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, in order of rank: [n ...] -> [ranks*n ...]; every rank must give equally many."""
    return x if world_size() == 1 else _Gather.apply(x)  # type: ignore[return-value]


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks."""
    return x if world_size() == 1 else _AllSum.apply(x)  # type: ignore[return-value]


def all_mean(x: Tensor) -> Tensor:
    """Mean over ranks."""
    return all_sum(x) / world_size()
