"""How do many processes train one method? Copies of it or pieces (data parallel), and the sums that losses may use.

`gather`, `all_mean` and `all_sum` pass gradients and do nothing on one process. With them a loss is written for one
process: summing locally and averaging gradients over ranks (what data parallel does) gives the gradient of the loss of
the whole batch.
"""

from __future__ import annotations

import inspect
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sslzoo.errors import RunError
from sslzoo.run.processes import World, patience

_SAMPLE = {"cuda": 256 << 20, "cpu": 4 << 20}  # bytes that tell how fast an all-reduce is, and soon


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def block_lists(method: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every list of blocks of a method, by its owner's name: what is called `blocks`, wherever it is."""
    for name, module in method.named_modules():
        listed = getattr(module, "blocks", None)
        if isinstance(listed, nn.ModuleList) and len(listed):
            yield name, listed


def transformer_blocks(method: nn.Module) -> Iterator[nn.Module]:
    """Every block of a method, once; of a part of parts, several lists may hold it."""
    yield from dict.fromkeys(block for _, listed in block_lists(method) for block in listed)


def copies(size: int, shard: int) -> int:
    """How many whole copies of the weights `size` processes hold, if each is split over `shard` of them.

    Raises:
        RunError: they cannot be grouped so.
    """
    if size % shard:
        raise RunError(f"run.shard: {size} processes cannot be grouped by {shard}")
    return size // shard


def data_parallel(
    method: nn.Module,
    world: World,
    shard: int = 1,
    gather_bf16: bool = False,
    reduce_bf16: bool = False,
) -> nn.Module:
    """The method, ready to train on all ranks: copies (DDP), or each parameter split over `shard` ranks (FSDP2).

    With fewer shards than ranks, every `shard` neighbors hold one copy together. Gradients are means over all ranks.
    In bf16 half the bytes travel: `gather_bf16` is of the weights of blocks that are split (their masters stay fp32),
    `reduce_bf16` of all gradients, which are rounded before they are summed.

    Raises:
        RunError: the ranks cannot be grouped so.
    """
    copies(world.size, shard)
    if shard > 1 or world.alone_as == "fsdp":
        mesh = _mesh(world, shard)
        reduce = torch.bfloat16 if reduce_bf16 else torch.float32
        rest = MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False)
        # Blocks compute under autocast, which would round the same weights after they came; tokens stay as they are.
        of_blocks = replace(rest, param_dtype=torch.bfloat16) if gather_bf16 else rest
        for block in transformer_blocks(method):
            fully_shard(block, mesh=mesh, mp_policy=of_blocks)
        # What is in no block is small, and stays whole from the forward to the end of the backward. Encoders are called
        # on their own too, so each gathers its own.
        for name, module in method.named_modules():
            if name.rpartition(".")[2] == "encoder":
                fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=rest)
        fully_shard(method, mesh=mesh, mp_policy=rest)
        return method
    if world.size == 1 and world.alone_as != "ddp":
        return method
    # Buffers are equal on every rank by contract, so they need not travel before each step. Looking for unused
    # parameters, a millisecond of the host's, also keeps buckets as they are: rebuilt after the first step, as is
    # usual, they would sum in another order after a restart, and take the gradients' memory twice in that step.
    known = inspect.signature(DistributedDataParallel).parameters
    still: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # torch's, on every rank: see above
    model = DistributedDataParallel(method, gradient_as_bucket_view=True, find_unused_parameters=True, **still)
    if reduce_bf16:
        model.register_comm_hook(None, bf16_compress_hook)
    return model


def _mesh(world: World, shard: int) -> DeviceMesh:
    """Ranks by copy of the weights and by part of a copy; they wait for each other as long as all ranks do.

    By part alone where all hold one copy: FSDP2 would sum every gradient over groups of one rank too.
    """
    ranks = torch.arange(world.size).view(-1, shard)
    if len(ranks) == 1:
        everyone: Any = dist.group.WORLD
        return DeviceMesh.from_group(everyone, world.device.type, mesh_dim_names=("shard",))
    groups = [_group(rows.tolist()) for rows in (ranks.T, ranks)]
    return DeviceMesh.from_group(groups, world.device.type, ranks, mesh_dim_names=("replicate", "shard"))


def _group(rows: list[list[int]]) -> Any:
    """This rank's group of those that the ranks are divided into."""
    return dist.new_subgroups_by_enumeration(rows, timeout=patience())[0]


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


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()  # NCCL takes no other
        rows = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(rows, x)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - autograd names it
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[dist.get_rank()]


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def all_reduce_rate(world: World, size: int, dtype: torch.dtype) -> float:
    """Bytes a second of an all-reduce of up to `size` bytes of numbers: the median of three; all ranks must ask."""
    x = torch.zeros(min(size, _SAMPLE[world.device.type]) // dtype.itemsize, device=world.device, dtype=dtype)
    took = []
    for _ in range(4):  # the first makes the connections
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(x)
        x[:1].cpu()  # it has arrived
        took.append(time.perf_counter() - begin)
    slowest = torch.tensor(statistics.median(took[1:]), device=world.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)  # all ranks tell the same
    return x.nbytes / slowest.item()


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
