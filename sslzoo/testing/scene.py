"""What do checks need around a part? A small student, tokens, targets and batches, made of nothing but torch."""

from __future__ import annotations

import copy
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslzoo.contracts import (
    Batch,
    Grid,
    Group,
    Mask,
    Pairing,
    Patches,
    Reading,
    Role,
    Signal,
    Student,
    Tokens,
    true_entries,
)
from sslzoo.nn import patchify
from sslzoo.progress import Progress
from sslzoo.recipe.shapes import wanted_shape
from sslzoo.run.data import pair, weigh
from sslzoo.run.processes import World
from sslzoo.step import encode_and_predict
from sslzoo.testing.report import Make, Violation, raised

AT, LATE = Progress(3, 10, 5), Progress(9, 10, 5)
WIDTH, PATCH = 64, 8
PATIENCE = 10.0  # seconds for the answer of a worker
MANY = 130  # rows of a batch that is not small: what works in chunks shows it

# The first backward of a process decides whether it may fork later: here, on the CPU alone, it may (`as_two_ranks`).
torch.zeros(1, requires_grad=True).sum().backward()


class Encoder(nn.Module):
    """A stand-in for an encoder: a linear layer on patches, positions added, a residual block; drops hidden patches."""

    ragged = True

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.width, self.patch = width, (PATCH, PATCH)
        self.embed = nn.Linear(3 * PATCH * PATCH, width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())])

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches."""
        return size[0] // PATCH, size[1] // PATCH

    def forward(self, pixels: Tensor, context: Patches | None = None, layers: int = 0) -> Tokens:
        """Tokens of the context, or of all patches."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        x = patchify(pixels, self.patch)
        every = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        index = every if context is None else context.index
        x = self.embed(x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])))
        x = x + torch.sin(index[..., None] * torch.linspace(0.1, 1.0, self.width, device=x.device))
        x = x + self.blocks[0](x)
        length = None if context is None else context.length
        return Tokens(x, index, x.mean(1), grid, layers=(x,) * layers, length=length)


class Predictor(nn.Module):
    """A stand-in for a predictor: a patch signal, and an image signal through a projector that teachers may copy."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.outputs = {"patch": Signal("patch", encoder.width), "image": Signal("image", 24)}
        self.projector = nn.Sequential(nn.Linear(encoder.width, 24))
        self.guess = nn.Linear(encoder.width, encoder.width)
        self.blocks = nn.ModuleList()

    def forward(self, tokens: Tokens, target: Patches | None, at: Progress) -> Mapping[str, Tensor]:
        """A row for each target patch, and one for each sequence."""
        said = {"image": self.projector(tokens.summary)}
        if target is not None:
            rows = self.guess(tokens.summary)[:, None, None].expand(-1, *target.index.shape[1:], -1)
            said["patch"] = target.flat(rows)
        return said


def student(seed: int = 0) -> Student:
    """A small encoder and predictor."""
    torch.manual_seed(seed)
    encoder = Encoder()
    return Student(encoder, Predictor(encoder))  # type: ignore[arg-type]


def tokens(rows: int, seen: int, grid: Grid = (4, 4), width: int = WIDTH, length: Tensor | None = None) -> Tokens:
    """Random tokens of some patches of each sequence; short rows repeat their first."""
    rng = torch.Generator().manual_seed(1)
    index = torch.stack([torch.randperm(grid[0] * grid[1], generator=rng)[:seen] for _ in range(rows)])
    x = torch.randn(rows, seen, width, generator=rng)
    if length is not None:
        short = ~true_entries(length, seen)
        index = torch.where(short, index[:, :1], index)
        x = torch.where(short[..., None], x[:, :1], x)
    return Tokens(x, index, x.mean(1), grid, length=length)


def targets(rows: int, blocks: int, size: int, whole: int = 16) -> Patches:
    """Random target blocks."""
    rng = torch.Generator().manual_seed(2)
    draws = [[torch.randperm(whole, generator=rng)[:size] for _ in range(blocks)] for _ in range(rows)]
    return Patches(torch.stack([torch.stack(row) for row in draws]))


def batch(images: int = 3, views: int = 1, side: int = 4 * PATCH, role: Any = "both") -> Batch:
    """Random images with random masks on a grid of 4 x 4, paired and weighted as the engine does."""
    rng = torch.Generator().manual_seed(3)
    pixels = torch.randn(views, images, 3, side, side, generator=rng)
    whole = (side // PATCH) ** 2
    order = torch.stack([torch.randperm(whole, generator=rng) for _ in range(views * images)])
    mask = Mask(Patches(order[:, : whole // 2]), Patches(order[:, whole // 2 :].unflatten(1, (2, -1))))
    return _batch({"image": Group(pixels, torch.zeros(views, images, 4), mask, role)})


def everywhere(images: int, grid: Grid, seed: int = 0) -> Batch:
    """Images of patches of one color each, and some noise; all patches but two are asked for, in two blocks."""
    rng = torch.Generator().manual_seed(seed)
    colors = torch.randn(1, images, 3, *grid, generator=rng).repeat_interleave(PATCH, 3).repeat_interleave(PATCH, 4)
    pixels = colors + 0.3 * torch.randn(colors.shape, generator=rng)
    order = torch.stack([torch.randperm(grid[0] * grid[1], generator=rng) for _ in range(images)])
    mask = Mask(Patches(order[:, :2]), Patches(order[:, 2:].unflatten(1, (2, -1))))
    return _batch({"image": Group(pixels, torch.zeros(1, images, 4), mask)})


def nothing_asked(images: int = 3) -> Batch:
    """Images of which nothing is asked: t = 0."""
    group = batch(images).groups["image"]
    assert group.mask is not None
    index = group.mask.target.index
    mask = Mask(group.mask.context, Patches(index, torch.zeros(index.shape[:2], dtype=torch.int64)))
    return _batch({"image": replace(group, mask=mask)})


def gathering(images: int = 3) -> Batch:
    """Groups of every kind: `image` in the middle, of two views with two masks each, whose blocks differ in length.

    Beside it one that the student reads alone and one that the teacher reads alone, neither with a mask.
    """
    plain = batch(images, 2).groups["image"]
    rng, rows = torch.Generator().manual_seed(4), 2 * 2 * images  # copies, views
    order = torch.stack([torch.randperm(16, generator=rng) for _ in range(rows)])
    length = 1 + torch.arange(2 * rows).reshape(rows, 2) % 4
    asked = order[:, 8:].unflatten(1, (2, 4))
    asked = torch.where(torch.arange(4) < length[..., None], asked, asked[..., :1])
    mask = Mask(Patches(order[:, :8]), Patches(asked, length), torch.arange(2 * images).repeat(2))
    alone = (torch.randn(1, images, 3, *plain.pixels.shape[-2:], generator=rng) for _ in range(2))
    near, far = (Group(pixels, plain.boxes[:1], None, role) for pixels, role in zip(alone, _ALONE, strict=True))
    return _batch({"near": near, "image": replace(plain, mask=mask), "far": far})


_ALONE: tuple[Role, Role] = ("context", "target")


def one_view(given: Batch, view: int) -> Batch:
    """A view of the group `image` as if there were nothing else, with its masks."""
    group = given.groups["image"]
    mask, images = group.mask, group.pixels.shape[1]
    assert mask is not None
    assert mask.source is not None
    rows = mask.source // images == view

    def some(patches: Patches) -> Patches:
        return Patches(patches.index[rows], None if patches.length is None else patches.length[rows])

    own = Mask(some(mask.context), some(mask.target), mask.source[rows] - view * images)
    return _batch({"image": replace(group, pixels=group.pixels[view][None], boxes=group.boxes[view][None], mask=own)})


def one_half(given: Batch, rank: int) -> Batch:
    """What one of two ranks has of a batch of one view of the group `image`."""
    group = given.groups["image"]
    mask, many = group.mask, group.pixels.shape[1] // 2
    assert mask is not None
    rows = slice(rank * many, rank * many + many)
    own = Mask(Patches(mask.context.index[rows]), Patches(mask.target.index[rows]))
    return _batch({"image": replace(group, pixels=group.pixels[:, rows], boxes=group.boxes[:, rows], mask=own)})


def _batch(groups: Mapping[str, Group]) -> Batch:
    images = next(iter(groups.values())).pixels.shape[1]
    return weigh([Batch(groups, pair(groups), tuple(range(images)), seen=pair(groups, "context"))], World())[0]


def reading(who: Student, given: Batch) -> Reading:
    """What a student says of a batch."""
    return encode_and_predict(who, given, AT)


def pairing(rows: int, sequences: int = 4, views: int = 2) -> Pairing:
    """Rows that share sequences evenly, each weighing as in a mean; every view meets every other but itself."""
    where = torch.arange(rows) * sequences // max(rows, 1)
    match = ~torch.eye(views, dtype=torch.bool)
    return Pairing(torch.full((rows,), 1 / max(rows, 1)), match, where, sequences, sequences)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float) -> str:
    """Where two sets of tensors differ most, or nothing."""
    for name, x in one.items():
        y = other[name]
        if x.shape != y.shape:
            return f"{name} {list(x.shape)} and {list(y.shape)}"
        gap = (x.double() - y.double()).abs().max().item() if x.numel() else 0.0
        scale = max(1.0, x.double().abs().max().item() if x.numel() else 0.0)
        if not gap <= tolerance * scale:
            return f"{name} differs by {gap:.1e}"
    return ""


def declared(
    outputs: Mapping[str, Signal], said: Mapping[str, Tensor], rows: int, lead: tuple[int, ...], where: str
) -> None:
    """Every declared signal is there, with its declared shape."""
    if not isinstance(said, Mapping) or not all(isinstance(x, Tensor) for x in said.values()):
        raise Violation("a mapping of tensors by name", type(said).__name__, where)
    if set(outputs) != set(said):
        raise Violation(f"the declared outputs {sorted(outputs)}", str(sorted(said)), where)
    for name, signal in outputs.items():
        if not isinstance(signal, Signal) or signal.kind not in ("patch", "image"):
            raise Violation(f"{name} declared by a Signal of kind patch or image", repr(signal), where)
        shape, letters = wanted_shape(signal, rows, lead, "[u b e]" if len(lead) == 2 else "[s e]")
        found, what = said[name], "class ids " if signal.ids else ""
        if tuple(found.shape) != shape:
            raise Violation(f"{name} {what}{letters} = {list(shape)}", str(list(found.shape)), where)
        if found.is_floating_point() == signal.ids:
            hint = "" if signal.ids else "; class ids are declared by Signal(kind, classes, ids=True)"
            raise Violation(f"{name} of {'whole' if signal.ids else 'floating'} numbers", f"{found.dtype}{hint}", where)
        if signal.ids and found.numel() and not 0 <= int(found.min()) <= int(found.max()) < signal.width:
            came = f"{int(found.min())} to {int(found.max())}"
            raise Violation(f"{name} class ids from 0 to {signal.width - 1}", came, where)
        wanted = torch.int64 if signal.ids else torch.float32
        if found.dtype != wanted:
            raise Violation(f"{name} of {str(wanted).removeprefix('torch.')}", str(found.dtype), where)
        if not signal.ids and not found.isfinite().all():
            raise Violation(f"{name} of finite numbers", "nan or inf", where)


def kept(part: nn.Module) -> None:
    """State is parameters and buffers: they alone are saved and moved to the device. Each can be split over ranks."""
    for path, module in part.named_modules():
        for name, value in vars(module).items():
            if not name.startswith(("_parameters", "_buffers", "_modules")) and _holds_tensors(value):
                where = f"{path}.{name}" if path else name
                came = f"{where}, a plain tensor: not saved in checkpoints, not moved to the device"
                raise Violation("tensors that are parameters or buffers (register_buffer)", came, "as it was made")
    for name, parameter in part.named_parameters():
        if not parameter.ndim:
            came = f"{name} is 0-d, which run.shard cannot split over ranks; make it [1]"
            raise Violation("parameters of at least one dimension", came, "as it was made")


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def elsewhere(part: nn.Module, call: Callable[[Any], Any], make: Make) -> None:
    """A part runs on another device: the meta device, where a plain tensor or a bare torch.arange is told."""
    moved = copied(part).to("meta")
    hint = "; make tensors on the device of the inputs, read no number from them (.item(), .tolist()), and select rows"
    hint += " by weights or torch.where: the shape of x[mask] and of nonzero() is not known there"
    wanted = "to run after part.to(device), on the meta device too, where `sslzoo check` and `train` rehearse a step"
    with torch.no_grad(), told_on_meta(make, wanted, hint, "the meta device"):
        call(moved)


def copied(part: nn.Module) -> Any:
    """A copy, as teachers are made and as probes train one."""
    try:
        return copy.deepcopy(part)
    except RuntimeError as error:  # what it keeps of a call hangs in that call's graph
        came = f"{error}: it keeps a tensor of a call, with its gradient (detach it, or keep none)"
        raise Violation("a part that can be copied after a call", came, "copy.deepcopy") from error


@contextmanager
def told_on_meta(make: Make, expected: str, hint: str, smallest: str) -> Iterator[None]:
    """An error of the meta device, which has no numbers, as a finding."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        came = raised(error, make) or f"{type(error).__name__}: {error}"
        raise Violation(expected, came + hint, smallest) from error


def as_moved(x: Any) -> Any:
    """A batch, tokens, patches or a tensor, on the meta device."""
    if isinstance(x, Tokens):
        names = ("patches", "index", "summary", "prefix", "length")
        tensors = {name: getattr(x, name) for name in names}
        return replace(x, **{name: None if value is None else value.to("meta") for name, value in tensors.items()})
    if isinstance(x, Reading):
        tokens_ = {name: as_moved(value) for name, value in x.tokens.items()}
        return Reading(tokens_, {name: value.to("meta") for name, value in x.signals.items()})
    return None if x is None else x.to("meta")


def unreached(module: nn.Module, value: Tensor) -> list[str]:
    """Parameters that the gradient of a value does not reach."""
    value.backward()
    return [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


@contextmanager
def untouched(**given: Any) -> Iterator[None]:
    """What a part is given stays as it was: other parts read the same tensors."""
    before = {name: [x.clone() for x in _tensors(value)] for name, value in given.items()}
    yield
    for name, value in given.items():
        if any(not torch.equal(x, y) for x, y in zip(before[name], _tensors(value), strict=True)):
            raise Violation(f"{name} as before the call: other parts read them too", "changed in place", "one call")


def _tensors(x: Any) -> Iterator[Tensor]:
    """The tensors in a batch, in tokens, in patches."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping | tuple):
        for one in x.values() if isinstance(x, Mapping) else x:
            yield from _tensors(one)
    elif is_dataclass(x):
        for field in fields(x):
            yield from _tensors(getattr(x, field.name))


def near_in_bf16(call: Callable[[], Mapping[str, Tensor]], where: str) -> str:
    """Under bfloat16 autocast a part says what it says in float32, but for a few percent."""
    full = call()
    with torch.autocast("cpu", torch.bfloat16):
        half = call()
    gaps = [(half[k].float() - x).norm() / x.norm().clamp(min=1e-6) for k, x in full.items()]
    worst = torch.stack(gaps).max().item()  # nan, if any is
    if not worst < 0.05:
        raise Violation("within 5 % of float32", f"{worst:.1%} off", where)
    return f"{worst:.1%} off"


def same_on_two_ranks(part: nn.Module, call: Callable[[slice], Mapping[str, Tensor]], make: Make, where: str) -> None:
    """Of 4 sequences, two ranks with half each have the gradient of one process with all. `call` is given the rows."""

    def gradients(rows: slice) -> dict[str, np.ndarray]:
        part.zero_grad()
        torch.stack([_pull(x, rows) for x in call(rows).values()]).sum().backward()
        # Arrays: a tensor would share memory with a process that ends.
        return {name: p.grad.numpy() for name, p in part.named_parameters() if p.grad is not None}

    whole = {name: torch.from_numpy(x.copy()) for name, x in gradients(slice(0, 4)).items()}
    halves = as_two_ranks(lambda rank: gradients(slice(2 * rank, 2 * rank + 2)), make)
    both = {name: (torch.from_numpy(halves[0][name]) + torch.from_numpy(halves[1][name])) / 2 for name in whole}
    found = equal(whole, both, 1e-5)
    if found:
        raise Violation("the gradient of one process", f"{found}; use gather, all_mean and all_sum of sslzoo", where)


def _pull(x: Tensor, rows: slice) -> Tensor:
    """A mean over sequences in which each pulls its rows another way."""
    mine = x.float().unflatten(0, (rows.stop - rows.start, -1)).flatten(1)
    way = torch.randn(4, mine.shape[1], generator=torch.Generator().manual_seed(6))
    return (mine * way[rows]).sum() / len(mine)


def restored(
    part: nn.Module, other: nn.Module, call: Callable[[Any], Mapping[str, Tensor]], smallest: str, times: int = 5
) -> str:
    """After some calls in training mode all that matters is in the state dict: `other` says the same once loaded."""
    for seed in range(times):
        with seeded(seed):
            call(part.train())
    if late := sorted(part.state_dict().keys() - other.state_dict().keys()):
        came = f"{', '.join(late[:3])} is made in a call: no optimizer moves it, no checkpoint fits it"
        raise Violation("parameters and buffers made in the constructor", came, smallest)
    stirred(part)  # as by an optimizer: what was kept of the weights is worth no more
    other.load_state_dict(copy.deepcopy(part.state_dict()))
    for mode in (True, False):
        with seeded(3):
            said = call(part.train(mode))
        with seeded(3):
            found = equal(said, call(other.train(mode)), 1e-6)
        if found:
            came = f"{found}: some state is no parameter or buffer, or is worked out of weights and kept"
            raise Violation("what it said before it was saved", came, f"after {times} calls and a step; {smallest}")
    return f"{len(part.state_dict())} tensors"


def steady(call: Callable[[], Mapping[str, Tensor]], smallest: str, times: int = 20) -> None:
    """Called again and again with one input, it says the same: nothing drifts, no chance comes in."""
    first = {name: x.clone() for name, x in call().items()}
    for number in range(2, times + 1):
        found = equal(first, call(), 1e-6)
        if found:
            came = f"{found} in call {number}: it keeps something between calls, or draws random numbers"
            raise Violation("the same outputs in eval mode", came, smallest)


def as_two_ranks(work: Callable[[int], Any], make: Make) -> list[Any]:
    """Calls `work(rank)` in two processes that form a gloo group; returns what each gave.

    Raises:
        Violation: the part raised an error there.
    """
    with tempfile.TemporaryDirectory() as folder:

        def rank_of_two(rank: int) -> Any:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
            return work(rank)

        wait = "a rank waits in a collective that the other does not enter, or ended"
        return forked(rank_of_two, make, 2, "on two ranks", wait, 40)


def as_workers(work: Callable[[int], Any], make: Make, count: int = 1) -> list[Any]:
    """Calls `work(number)` in loader workers: processes forked now, which have no threads but their own.

    Raises:
        Violation: the part raised an error there, or gave no answer.
    """
    wait = "does it wait for a thread or a lock of the process in which it was made?"
    return forked(work, make, count, "in a loader worker", wait, PATIENCE)


def forked(work: Callable[[int], Any], make: Make, count: int, where: str, wait: str, seconds: float) -> list[Any]:
    """What `work(number)` gives in each of some processes that are forked now; `wait` is why there may be no answer."""
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(count)]

    def child(number: int) -> None:
        torch.set_num_threads(1)
        try:
            pipes[number][1].send(work(number))
        except Exception as error:  # told to the parent; its traceback does not travel
            came = raised(error, make)
            found = Violation(f"no error {where}", came, f"process {number}") if came else RuntimeError(repr(error))
            pipes[number][1].send(found)
        os._exit(0)

    children = [fork.Process(target=child, args=(number,)) for number in range(count)]
    for one in children:
        one.start()
    until = time.monotonic() + seconds
    found = [_answer(*pipe, where, wait, until) for pipe in pipes]
    for one in children:
        one.kill()
        one.join()
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


def _answer(ours: Connection, theirs: Connection, where: str, wait: str, until: float) -> Any:
    theirs.close()  # the child holds it alone: its end is seen
    try:
        answered = ours.poll(max(0.0, until - time.monotonic()))
        return ours.recv() if answered else Violation(f"an answer {where}", f"none: {wait}")
    except EOFError:
        return Violation(f"an answer {where}", "none: its process ended")


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Torch seeded, for parts that draw their starting weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def stirred(part: Any) -> Any:
    """A part as after some training: what starts at zero (a last layer, a gate) would hide what lies behind it."""
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in part.parameters() if isinstance(part, nn.Module) else ():
            if parameter.requires_grad and parameter.is_floating_point() and not parameter.is_meta:
                noise = torch.randn(parameter.shape, generator=rng)
                parameter += 0.05 * noise.to(parameter)
    return part


def size_of(part: nn.Module) -> str:
    """Its parameters, for a remark."""
    return f"{sum(parameter.numel() for parameter in part.parameters()):,} parameters"
