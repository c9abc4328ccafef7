"""A GPU that computes: tensors with numbers in the host's memory that say they are on a GPU, and refuse the host's.

Nothing is made up: what depends on numbers (k-NN, L-BFGS, a boolean index) runs, gradients too, and gives what the CPU
gives. An operation on tensors of two devices fails as CUDA's own does. They say `lazy`, the one device beside the host
for which autograd asks no driver; there are no streams, and no autocast.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
DEVICE, CPU = torch.device("lazy"), torch.device("cpu")


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """While such a GPU is there."""
    optimizers, fused = sys.modules["torch.optim.optimizer"], ["cpu", DEVICE.type]
    draw = torch.Generator
    with (
        mock.patch.object(torch, "Generator", side_effect=lambda *_: draw()),
        mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()),
        mock.patch.object(optimizers, "_get_fused_kernels_supported_devices", return_value=fused),
        _Computing(),
    ):
        yield


class There(Tensor):
    """A tensor of the GPU; its numbers are in `held`, on the host."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return answer(func, args, kwargs or {})

    def tolist(self) -> Any:
        """The numbers, on the host; torch has no such form for subclasses."""
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"There({self.held!r})"


class _Computing(TorchDispatchMode):
    """Answers `device=DEVICE`, where no tensor says so yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return answer(func, args, kwargs or {})


def answer(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, on the device where it runs.

    Raises:
        RuntimeError: its tensors are of two devices. Of the host's, CUDA takes numbers without dimensions as operands,
            and indices.
    """
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = any(isinstance(x, There) for x in tensors)
    moved = func is aten._to_copy.default or func is aten.copy_.default
    if there and not moved and any(not isinstance(x, There) and not _taken(func, x, args) for x in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} of {[str(x.device) for x in tensors]}"
        )
    device = kwargs.get("device")
    there = there if device is None else torch.device(device).type == DEVICE.type
    if device is not None:
        kwargs = kwargs | {"device": CPU}
    if func is aten._to_copy.default and device is not None and there != isinstance(args[0], There):
        return _placed(func(*tree_map(_held, args), **kwargs).clone(), there)  # never the same memory
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    written = {id(_held(x)): x for x in tensors}  # in place, or `out`: the tensor itself is given back
    return tree_map(lambda x: written.get(id(x), _placed(x, there)) if isinstance(x, Tensor) else x, out)


def _taken(func: Any, x: Tensor, args: Any) -> bool:
    """Whether CUDA takes this tensor of the host beside its own."""
    index = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and x is not args[0]
    return not x.ndim or index


def _placed(x: Tensor, there: bool) -> Tensor:
    return There(x) if there and not isinstance(x, There) else x


def _held(x: Any) -> Any:
    return x.held if isinstance(x, There) else x
