"""A GPU that is not there: `train` runs whole on tensors without numbers, and every crossing to or from the host is seen.

Two kinds, each blind to something. `cuda`: fake tensors that say they are on a GPU, under CUDA's autocast; they pass
where a kernel would refuse tensors of two devices, and autograd has no engine for them, so gradients are made up.
`meta`: tensors of shapes alone; they refuse other devices and have gradients, and know no autocast. (`computing.py` has
tensors with numbers.)
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import sslzoo.train as loop
from sslzoo import speed
from sslzoo.recipe import build as parts
from sslzoo.recipe.fit import Flow
from sslzoo.run import checkpoint, data, loader
from sslzoo.run.processes import World
from sslzoo.step import Method

aten = torch.ops.aten


@dataclass(frozen=True)
class Crossing:
    """Something that passed between host and device."""

    step: int  # from 0; -1 before the first
    way: str  # in, out
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: bool  # the host waits until the device has come so far
    aside: bool = False  # on another stream than the computing one


class StandIn(TorchDispatchMode):
    """Notes crossings and kernels; answers what only a device could."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.step = kind, -1
        self.crossings: list[Crossing] = []
        self.kernels: Counter[int] = Counter()
        self._pinned: set[int] = set()
        self._kept: list[Tensor] = []  # so that ids stay theirs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.is_pinned.default:
            return id(args[0]) in self._pinned
        if func is aten._pin_memory.default:
            return self._pin(args[0].clone())
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        inside, outside = self._here(tensors), [x for x in tensors if x.device.type == "cpu"]
        if func is aten._fused_sgd_.default:  # it has no form for tensors without numbers
            assert not outside
            self.kernels[self.step] += 1
            return None
        if inside and _waits(func, args):
            self._note("out", func, inside[0], blocks=True)
        if func is aten._local_scalar_dense.default and (inside or self.kind == "cuda"):
            return 0.0  # no tensor here has numbers
        if func is aten._to_copy.default:
            return self._copy(func, args, kwargs)
        if func is aten.copy_.default and args[0].device.type != args[1].device.type:
            blocks = not ((len(args) > 2 and args[2]) or kwargs.get("non_blocking"))
            self._note("in" if inside and self._here([args[0]]) else "out", func, args[1], blocks)
        elif inside and any(x.ndim for x in outside):
            self._note("in", func, next(x for x in outside if x.ndim), blocks=True)
        out = func(*args, **kwargs)
        if _Stream.current is _Stream.computing and inside:
            assert not _Stream.ahead, f"{func} computes on what still travels: the computing stream has not waited"
        if self._here([x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]) and not func.is_view:
            self.kernels[self.step] += 1
        return out

    def _here(self, tensors: list[Tensor]) -> list[Tensor]:
        return [x for x in tensors if x.device.type == self.kind]

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, to = args[0], kwargs.get("device")
        if to is None or torch.device(to).type == x.device.type:
            self.kernels[self.step] += bool(self._here([x]))
            return func(*args, **kwargs)
        if torch.device(to).type == self.kind:
            quick = kwargs.get("non_blocking") and id(x) in self._pinned
            self._note("in", func, x, blocks=not quick)
            return func(*args, **kwargs)
        self._note("out", func, x, blocks=not kwargs.get("non_blocking"))  # the host's side is pinned by PyTorch
        if self.kind == "meta":
            return torch.zeros(x.shape, dtype=kwargs.get("dtype") or x.dtype, device="cpu")
        return func(*args, **kwargs)

    def _pin(self, x: Tensor) -> Tensor:
        self._pinned.add(id(x))
        self._kept.append(x)
        return x

    def _note(self, way: str, func: Any, x: Tensor, blocks: bool) -> None:
        aside = _Stream.current is not _Stream.computing
        self.crossings.append(Crossing(self.step, way, str(func), tuple(x.shape), x.dtype, bool(blocks), aside))


def _waits(func: Any, args: Any) -> bool:
    """Whether an operation's result or its size is for the host to read."""
    if func is aten.index.Tensor:
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags)


def run(recipe: Any, catalogue: Any, kind: str, out: Path) -> StandIn:
    """Trains a recipe on a stand-in of this kind; its data set is never opened."""
    with standing(recipe, catalogue, kind) as stand_in:
        loop.train(recipe, catalogue, Flow((), {}, 1.0, ()), out, World(device=torch.device(kind)))
    return stand_in


@contextlib.contextmanager
def standing(recipe: Any, catalogue: Any, kind: str) -> Iterator[StandIn]:
    """While a stand-in of this kind is there, and batches of a recipe."""
    stand_in, batches = StandIn(kind), _batches(recipe, catalogue)
    _Stream.ahead = False
    with contextlib.ExitStack() as entered:
        fake = entered.enter_context(_Fake()) if kind == "cuda" else None
        if fake is not None:
            batches = [batch.map(fake.from_tensor) for batch in batches]
        for owner, name, other in (*_anywhere(stand_in, batches), *(_CUDA if kind == "cuda" else _META)):
            entered.enter_context(mock.patch.object(owner, name, other))
        entered.enter_context(stand_in)
        yield stand_in


def shallow(recipe):
    """At full width and grid, of the fewest blocks its target reads: all blocks of a list are alike."""
    depth = max([2, *(spec.get("layers", 0) for spec in recipe.targets.values())])
    deep = {"depth": 2} if "depth" in recipe.predictor else {}
    return replace(recipe, encoder={**recipe.encoder, "depth": depth}, predictor={**recipe.predictor, **deep})


def shortened(recipe):
    """A quiet step, and a last one with a log line and the monitor."""
    short = {"steps": 2, "epochs": None, "batch": 8, "micro": None, "log_every": 2, "compile": False, "monitor": 8}
    return replace(recipe, run=recipe.run.model_copy(update=short))


def _batches(recipe: Any, catalogue: Any) -> list[data.Batch]:
    """A batch for each step, all that the loader would send: masks of changing context lengths, pixels as views give them."""
    with torch.device("meta"):
        method, sources = parts.assemble(recipe, catalogue)
    bytes_ = all(hasattr(views.view, "mean") for views in sources.views.values())  # toys take tensors
    pictures: Any = _Pictures(Image.new("RGB", (64, 64)) if bytes_ else torch.zeros(3, 8, 8))
    sources, run = data.Sources(pictures, sources.views, sources.masks), recipe.run
    micros = data.undivided(sources, method.student.encoder, run.batch, run.seed, World(), run.steps)
    return [loader.passed(micros[step]) for step in range(run.steps)]


def _anywhere(stand_in: StandIn, batches: list[data.Batch]) -> Iterator[tuple[Any, str, Any]]:
    """What stands for the data set and the disk."""

    def build(recipe: Any, catalogue: Any) -> tuple[Method, data.Sources]:
        with torch.device(stand_in.kind):
            method, sources = parts.assemble(recipe, catalogue)
        stand_in.method = method
        return method, data.Sources(_Pictures(), sources.views, sources.masks)  # type: ignore[arg-type]

    def load(*_given: Any, **_named: Any) -> Iterator[data.Batch]:
        for stand_in.step, batch in enumerate(batches):
            yield batch.pin_memory() if stand_in.kind == "cuda" else batch

    def images(_recipe: Any, _catalogue: Any, sources: data.Sources, _world: World) -> Tensor:
        return torch.zeros(8, 3, *next(iter(sources.views.values())).view.size)

    yield from (
        (loop, "build", build),
        (speed, "build", build),
        (speed, "check", lambda *_: Flow((), {}, 1.0, ())),
        (loop, "monitored_images", images),
        (loader, "load", load),
    )
    synchronized = Crossing(-1, "out", "synchronize", (), torch.bool, True)
    yield speed, "_wait", lambda _: stand_in.crossings.append(synchronized)
    yield Method, "to", lambda self, *_: self  # made where it belongs
    yield checkpoint, "Saver", lambda *_, **__: _Unsaved()


class _Fake(FakeTensorMode):
    def __deepcopy__(self, _memo: object) -> _Fake:
        return self  # a teacher is a copy, of the same mode


class _Pictures:
    """A data set of one picture."""

    tasks: Any = MappingProxyType({})

    def __init__(self, picture: Any = None) -> None:
        self.picture = picture

    def __len__(self) -> int:
        return 10_000

    def image(self, _i: int) -> Any:
        return self.picture


class _Unsaved:
    def save(self, *_given: Any) -> None: ...

    def poll(self) -> None: ...

    def join(self) -> None: ...


class _Event:
    def __init__(self, enable_timing: bool = False) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _end: object) -> float:
        return 1000.0


class _Stream:
    """Which stream work goes to, and whether the computing one has waited for what another was given."""

    computing: Any = None
    current: Any = None
    ahead = False  # something travels on another stream

    def __init__(self, _device: Any = None) -> None: ...

    def wait_stream(self, _other: Any) -> None:
        _Stream.ahead = False


_Stream.computing = _Stream.current = _Stream()


@contextlib.contextmanager
def _on_stream(stream: _Stream) -> Iterator[None]:
    before, _Stream.current = _Stream.current, stream
    yield
    _Stream.current, _Stream.ahead = before, True


def _made_up_gradients(loss: Tensor, *_given: Any, **_named: Any) -> None:
    assert loss.requires_grad
    stand_in = next(
        mode for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack() if isinstance(mode, StandIn)
    )
    for parameter in stand_in.method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


_ON_THE_HOST = torch.Generator()

_CUDA = (
    (torch, "Generator", lambda *_: _ON_THE_HOST),
    (torch.Tensor, "backward", _made_up_gradients),
    (torch.cuda, "Event", _Event),
    (torch.cuda, "Stream", _Stream),
    (torch.cuda, "current_stream", lambda *_: _Stream.current),
    (torch.cuda, "stream", _on_stream),
    (torch.Tensor, "record_stream", lambda *_: None),
    (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
    (torch.cuda, "get_device_name", lambda *_: "A100"),
    (torch.cuda, "get_device_capability", lambda *_: (8, 0)),
    (torch.cuda, "memory_allocated", lambda *_: 1),
    (torch.cuda, "max_memory_allocated", lambda *_: 3),
    (torch.cuda, "reset_peak_memory_stats", lambda *_: None),
    (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
)
_META = (
    (torch, "autocast", lambda *_, **__: contextlib.nullcontext()),
    (sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"]),
)
