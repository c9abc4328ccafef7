"""Which images does a step see, and how do they become a Batch?

Image, views and masks of slot p in step n are functions of (seed, n, p) alone. So a loader that starts at step n gives
what an unbroken one gives there, whatever the number of workers, ranks and micro-batches: resuming is arithmetic.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sslzoo.contracts import (
    Batch,
    Dataset,
    Encoder,
    Grid,
    Group,
    Mask,
    MaskSampler,
    Pairing,
    Patches,
    Role,
    View,
)
from sslzoo.errors import RunError, UserError
from sslzoo.progress import Progress
from sslzoo.rng import Rng, derive_seed, generator
from sslzoo.run.parallel import World, all_sum
from sslzoo.run.travel import moved

Made = TypeVar("Made")
DRAWN_TOGETHER = "images masked together (run.batch over processes, at most run.micro)"
TRIES = 16  # other images tried in place of an unreadable one
# What reading an image may raise: Pillow reports a broken PNG as a SyntaxError, and too large an image in its own way.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Views:
    """One group of views: `count` random views of each image, and who reads them."""

    view: View
    count: int = 1
    role: Role = "both"


@dataclass(frozen=True)
class Sources:
    """Where batches come from: a data set, its groups of views, and the mask samplers of some groups."""

    data: Dataset
    views: Mapping[str, Views]
    masks: Mapping[str, MaskSampler]


@dataclass(frozen=True)
class Split:
    """How a global batch is split: `batch` = ranks * accumulate * micro."""

    batch: int
    ranks: int
    accumulate: int

    @property
    def micro(self) -> int:
        """Images on one device at a time."""
        return self.batch // (self.ranks * self.accumulate)

    def slots(self, rank: int, micro: int) -> range:
        """Positions in the global batch of one rank's micro-batch."""
        start = (micro * self.ranks + rank) * self.micro
        return range(start, start + self.micro)


def split(batch: int, ranks: int, most: int | None) -> Split:
    """Splits a global batch over ranks and micro-batches of at most `most` images.

    Raises:
        RunError: the batch cannot be split evenly over the ranks.
    """
    if batch % ranks:
        raise RunError(f"run.batch: a global batch of {batch} cannot be split evenly over {ranks} processes")
    local = batch // ranks
    micros = next(n for n in range(1, local + 1) if local % n == 0 and (most is None or local // n <= most))
    return Split(batch, ranks, micros)


@dataclass(frozen=True)
class Order:
    """The order of images: a new permutation each epoch, the incomplete last batch left out."""

    images: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch > self.images:
            raise RunError(f"run.batch: a batch of {self.batch} is larger than the data set of {self.images} images")

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return self.images // self.batch

    def epoch(self, number: int) -> Tensor:
        """The permutation of one epoch."""
        return torch.randperm(self.images, generator=generator(self.seed, "order", number))


class Micros(TorchDataset[Batch | UserError]):
    """Micro-batch number step * accumulate + micro of one rank, made in a loader worker.

    A person's mistake is returned, and raised by `passed`: raised in a worker, it would bring the worker's traceback.
    """

    def __init__(
        self, sources: Sources, grids: Mapping[str, Grid], order: Order, shares: Split, rank: int, steps: int = 0
    ) -> None:
        self.sources, self.grids, self.order, self.shares, self.rank = sources, grids, order, shares, rank
        self.steps = steps  # of the run, for schedules of masks
        self._epoch: tuple[int, Tensor] | None = None

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self._batch(number)
        except UserError as error:
            return error

    def _batch(self, number: int) -> Batch:
        step, micro = divmod(number, self.shares.accumulate)
        slots = self.shares.slots(self.rank, micro)
        images, samples, unreadable = [], [], []
        at = Progress(step, self.steps or step + 1, self.order.epoch_steps)
        for slot in slots:
            image, index, failed = self._read(step, self._index(step, slot))
            images.append(image)
            samples.append(index)
            unreadable += failed
        groups = {
            name: make_group(views, images, self.order.seed, at, slots, name, self._sampler(name), self.grids[name])
            for name, views in self.sources.views.items()
        }
        return Batch(groups, pair(groups), tuple(samples), tuple(unreadable), pair(groups, "context"))

    def _sampler(self, name: str) -> MaskSampler | None:
        return self.sources.masks.get(name)

    def _index(self, step: int, slot: int) -> int:
        epoch, step = divmod(step, self.order.epoch_steps)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.order.epoch(epoch))
        return int(self._epoch[1][step * self.order.batch + slot])

    def _read(self, step: int, index: int) -> tuple[Any, int, list[tuple[int, str]]]:
        failed: list[tuple[int, str]] = []
        for attempt in range(TRIES):
            try:
                return self.sources.data.image(index), index, failed
            except UNREADABLE as error:
                failed.append((index, f"{type(error).__name__}: {error}"))
                index = derive_seed(self.order.seed, "instead", step, index, attempt) % self.order.images
        raise RunError(f"{TRIES} images in a row could not be read; the last: image {failed[-1][0]}, {failed[-1][1]}")


def make_group(
    views: Views,
    images: Sequence[Any],
    seed: int,
    at: Progress,
    slots: Sequence[int],
    name: str,
    sampler: MaskSampler | None,
    grid: Grid,
) -> Group:
    """The views of some images, and the masks of those views."""
    pixels, boxes = [], []
    for view in range(views.count):
        for image, slot in zip(images, slots, strict=True):
            seed_views(derive_seed(seed, name, view, at.step, slot))
            seen, box = views.view(image)
            pixels.append(seen)
            boxes.append(box)
    shape = (views.count, len(images))
    mask = None if sampler is None else draw_mask(sampler, grid, derive_seed(seed, name), at, slots, views.count)
    return Group(torch.stack(pixels).unflatten(0, shape), torch.stack(boxes).unflatten(0, shape), mask, views.role)


def draw_mask(
    sampler: MaskSampler, grid: Grid, seed: int, at: Progress | int, slots: Sequence[int], views: int = 1
) -> Mask:
    """Masks of these slots of a step, for each of the views; groups pass seeds of their own.

    A number is that step of a run that ends with it.

    Raises:
        RunError: the sampler returned no mask, or one that does not fit the grid.
    """
    rows = [view << 32 | slot for view in range(views) for slot in slots]
    at = Progress(at, at + 1) if isinstance(at, int) else at
    found = sampler(len(rows), grid, Rng(seed, at.step, rows, at))
    fault = _mask_fault(found, len(rows), grid)
    if fault:
        raise RunError(f"the mask sampler {type(sampler).__name__} {fault}")
    return found


def _mask_fault(found: Any, rows: int, grid: Grid) -> str:
    """What is wrong with what a mask sampler returned, or nothing.

    Asked of every batch: an index beyond the grid would crash an encoder, or be silent in one.
    """
    if not isinstance(found, Mask):
        return f"returned a {type(found).__name__}; the contract says a Mask of context [s k] and target [s m q]"
    context, target = found.context.index, found.target.index
    if context.ndim != 2 or target.ndim != 3 or len(context) != len(target) or len(context) % rows:
        return (
            f"returned context {_letters(context)} and target {_letters(target)} for a batch of {rows}; the contract "
            "says context [s k] and target [s m q], s a multiple of the batch"
        )
    for name, patches in (("context", found.context), ("target", found.target)):
        fault = _index_fault(patches.index, grid[0] * grid[1]) or _length_fault(patches)
        if fault:
            return (
                f"returned a {name} {fault}; a grid of {grid[0]} x {grid[1]} has patches 0 to {grid[0] * grid[1] - 1}"
            )
    fault = "" if found.source is None else _index_fault(found.source, rows)
    return fault and f"returned a source {fault}; the batch has view rows 0 to {rows - 1}"


def _index_fault(index: Tensor, patches: int) -> str:
    if index.dtype != torch.int64:
        return f"of {str(index.dtype).removeprefix('torch.')}, where int64 is wanted"
    if not index.numel():
        return f"of no patches, {_letters(index)}"
    low, high = (int(one) for one in index.aminmax())
    return "" if 0 <= low <= high < patches else f"that names {low if low < 0 else high}"


def _length_fault(patches: Patches) -> str:
    if patches.length is None:
        return ""
    low, high = (int(one) for one in patches.length.aminmax())
    return "" if 0 <= low <= high <= patches.index.shape[-1] else f"whose lengths run from {low} to {high}"


def _letters(x: Tensor) -> str:
    return f"[{' '.join(map(str, x.shape))}]"


def seed_views(seed: int) -> None:
    """Seeds what augmentations draw from: torch, random and numpy."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # third-party augmentations draw from it


def pair(groups: Mapping[str, Group], of: Literal["target", "context"] = "target") -> Pairing:
    """Which rows belong to which sequence, which student view may meet which teacher view. Weights are ones as yet.

    Rows are the target patches of all groups, or the patches that the student saw.
    """
    sequence, sequences, blocks = [], 0, 0
    student, teacher = [], []
    for name, group in groups.items():
        views = [(name, view) for view in range(group.pixels.shape[0])]
        copies = 1
        if group.mask is not None:
            s = len(group.mask.context.index)
            copies = s // (group.pixels.shape[0] * group.pixels.shape[1])
            if of == "target" or group.role != "target":
                patches = getattr(group.mask, of)
                first = torch.arange(sequences, sequences + s)
                rows = first.view(s, *[1] * (patches.index.ndim - 1)).expand(patches.index.shape)
                sequence.append(patches.flat(rows[..., None])[:, 0])
                sequences, blocks = sequences + s, blocks + patches.index[..., 0].numel()
        student += views * copies if group.role != "target" else []
        teacher += views if group.role != "context" else []
    match = torch.tensor([[one != other for other in teacher] for one in student], dtype=torch.bool)
    where = torch.cat(sequence) if sequence else torch.zeros(0, dtype=torch.long)
    return Pairing(torch.ones(len(where)), match.reshape(len(student), len(teacher)), where, sequences, blocks)


def weigh(batches: Sequence[Batch], world: World) -> list[Batch]:
    """The micro-batches of a step on the device, rows weighted so that averaged gradients give the mean of all rows.

    Summing locally and averaging over ranks and micro-batches multiplies by 1 / (ranks * micros); so a row of a step
    with n real rows in all weighs ranks * micros / n. The count over ranks never visits the CPU.
    """
    pairs = [(batch.pairing, batch.seen or batch.pairing) for batch in batches]
    counts = [float(sum(len(one.sequence) for one in rows)) for rows in zip(*pairs, strict=True)]
    # Filled on the device: a copy of numbers would wait for it.
    rows = torch.stack([torch.full((), count, device=world.device) for count in counts])
    asked, seen = (world.size * len(batches) / all_sum(rows).clamp(min=1)).unbind()
    return [
        replace(b, pairing=_weighing(b.pairing, asked), seen=None if b.seen is None else _weighing(b.seen, seen))
        for b in moved(batches, world.device)
    ]


def _weighing(pairing: Pairing, weight: Tensor) -> Pairing:
    return replace(pairing, weight=weight.expand(len(pairing.sequence)))


def loader(micros: Micros, start: int, steps: int, workers: int, pin: bool) -> Iterator[Batch]:
    """Micro-batches of steps start .. steps-1, in order, made by `workers` processes (0: by this one)."""
    each = micros.shares.accumulate
    return map(
        passed,
        DataLoader(
            micros,
            batch_size=None,
            sampler=range(start * each, steps * each),
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_deaf if workers else None,
            multiprocessing_context="fork" if workers else None,  # plugin files cannot be imported by name elsewhere
        ),
    )


def passed(made: Made | UserError) -> Made:
    """What a loader's worker made; raises the person's mistake that it returned instead."""
    if isinstance(made, UserError):
        raise made
    return made


def readable(data: Dataset, most: int) -> Iterator[tuple[int, Any]]:
    """Those of the first `most` images of a data set that can be read, with their numbers."""
    for index in range(min(most, len(data))):
        try:
            yield index, data.image(index)
        except UNREADABLE:
            continue


def identity(data: Dataset) -> dict[str, Any]:
    """What tells a data set from another, cheaply: its size, its tasks, and a hash.

    The hash is of the data set's own `fingerprint`, where it has one, and of the labels of up to 64 images.

    Raises:
        RunError: a label is outside the classes that its task declares.
    """
    count, tasks = len(data), {task: int(classes) for task, classes in data.tasks.items()}
    told = [str(getattr(data, "fingerprint", ""))]
    for i in sorted({int(i) for i in np.linspace(0, count - 1, min(count, 64))} if tasks else ()):
        label = data.label(i)
        for task, classes in tasks.items():
            if not 0 <= int(label[task]) < classes:
                raise RunError(f"image {i} has the label {label[task]} in the task {task}: classes 0 to {classes - 1}")
            told.append(f"{i} {task} {int(label[task])}")
    return {"images": count, "tasks": tasks, "fingerprint": hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]}


def drawn_together(sources: Sources, shares: Split) -> dict[str, int]:
    """How many images masks are drawn with, where that matters to them: a part of the training data's identity."""
    matters = any(getattr(sampler, "batchwise", False) for sampler in sources.masks.values())
    return {DRAWN_TOGETHER: shares.micro} if matters else {}


def _deaf(_worker: int) -> None:
    """Signals for the whole job, such as SLURM's before a preemption, must not kill workers that are still needed.

    TERM is heard from the parent process alone: so it ends them when it leaves, and would wait for ever for deaf ones.
    """
    for one in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _leave_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def fake_batch(
    sources: Sources,
    encoder: Encoder,
    images: int,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
    at: Progress | int = 0,
    drawn: int | None = None,
) -> Batch:
    """A batch with real masks and empty pixels, for the dry run; the data set is not touched.

    Masks are those of the first images of a step whose micro-batch has `drawn` images: their sizes may depend on it.
    """
    groups = {}
    for name, views in sources.views.items():
        sampler = sources.masks.get(name)
        mask = None
        if sampler is not None:
            rows, grid = drawn or images, encoder.grid(views.view.size)
            whole = draw_mask(sampler, grid, derive_seed(seed, name), at, range(rows), views.count)
            mask = _of_first_images(whole, images, rows)
        pixels = torch.zeros(1, 1, 1, 1, 1).expand(views.count, images, 3, *views.view.size)
        groups[name] = Group(pixels, torch.zeros(views.count, images, 4), mask, views.role)
    batch = Batch(groups, pair(groups), seen=pair(groups, "context"))
    return weigh([batch], World(device=torch.device(device)))[0]


def _of_first_images(mask: Mask, images: int, batch: int) -> Mask:
    """The masks of the first images of a batch; sequences are ordered (c v b)."""
    rows = torch.arange(len(mask.context.index)).reshape(-1, batch)[:, :images].flatten()

    def some(patches: Patches) -> Patches:
        return Patches(patches.index[rows], None if patches.length is None else patches.length[rows])

    source = None if mask.source is None else mask.source[rows] // batch * images + mask.source[rows] % batch
    return Mask(some(mask.context), some(mask.target), source)
