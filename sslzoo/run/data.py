"""Which images does a step see, and how do they become a Batch?

Image, views and masks of slot p in step n are functions of (seed, n, p) alone. So a loader that starts at step n gives
what an unbroken one gives there, whatever the number of workers, ranks and micro-batches: resuming is arithmetic.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
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
    letters,
    normalized,
)
from sslzoo.errors import ImageError, RunError, UserError
from sslzoo.progress import Progress
from sslzoo.rng import derive_seed, generator, row_keys, seed_shared
from sslzoo.run.masking import draw_mask
from sslzoo.run.parallel import all_sum
from sslzoo.run.processes import World
from sslzoo.run.travel import moved

Seen = tuple[Tensor, Tensor]  # pixels of a view, and its box
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

    def grids(self, encoder: Encoder) -> dict[str, Grid]:
        """Rows and columns of patches that an encoder makes of each group's views."""
        return {name: encoder.grid(views.view.size) for name, views in self.views.items()}


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
        looks = [self._look(step, slot) for slot in slots]
        at = Progress(step, self.steps or step + 1, self.order.epoch_steps)
        groups = {}
        for name, views in self.sources.views.items():
            sampler, seed = self.sources.masks.get(name), derive_seed(self.order.seed, name)
            mask = None if sampler is None else draw_mask(sampler, self.grids[name], seed, at, slots, views.count)
            group = make_group(views, [look.seen[name] for look in looks], mask)
            groups[name] = replace(group, lots=self._lots(name, step, slots, group))
        samples = tuple(look.index for look in looks)
        unreadable = tuple(one for look in looks for one in look.unreadable)
        return Batch(groups, pair(groups), samples, unreadable, pair(groups, "context"))

    def _lots(self, name: str, step: int, slots: range, group: Group) -> Tensor:
        """What the chances of each sequence follow from: its image's slot, its view and its mask, (c v b)."""
        rows = group.pixels.shape[0] * len(slots)
        copies = 1 if group.mask is None else len(group.mask.context.index) // rows
        keys = [
            copy << 48 | view << 32 | slot
            for copy in range(copies)
            for view in range(group.pixels.shape[0])
            for slot in slots
        ]
        return row_keys(keys, self.order.seed, name, "lots", step)

    def _index(self, step: int, slot: int) -> int:
        epoch, step = divmod(step, self.order.epoch_steps)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self.order.epoch(epoch))
        return int(self._epoch[1][step * self.order.batch + slot])

    def _look(self, step: int, slot: int) -> Look:
        """All views of the image at a slot of a step: it is read once, and may decode only what they show."""
        seed, index, failed = self.order.seed, self._index(step, slot), []
        for attempt in range(TRIES):
            try:
                image = read(self.sources.data, index)
                seen = {
                    name: [look(views.view, image, derive_seed(seed, name, n, step, slot)) for n in range(views.count)]
                    for name, views in self.sources.views.items()
                }
                return Look(index, seen, failed)
            except ImageError as error:
                failed.append((index, str(error)))
                index = derive_seed(seed, "instead", step, index, attempt) % self.order.images
        raise RunError(f"{TRIES} images in a row could not be read; the last: image {failed[-1][0]}, {failed[-1][1]}")


def undivided(sources: Sources, encoder: Encoder, images: int, seed: int, world: World, steps: int = 0) -> Micros:
    """Batches of `images` on each process, each of them a step of its own: no part of the global batch waits."""
    shares = split(images * world.size, world.size, None)
    order = Order(len(sources.data), shares.batch, seed)
    return Micros(sources, sources.grids(encoder), order, shares, world.rank, steps)


@dataclass(frozen=True)
class Look:
    """What is seen of one image: by group, pixels and box of each view; and the images it stands in for."""

    index: int
    seen: Mapping[str, Sequence[Seen]]
    unreadable: Sequence[tuple[int, str]]


def read(data: Dataset, index: int) -> Any:
    """An image of a data set; raises ImageError, whatever the data set raises. Its decoder may raise one later."""
    try:
        return data.image(index)
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError.of(error) from error


def look(view: View, image: Any, seed: int) -> Seen:
    """Pixels and box of a view, its chances drawn from a seed; raises ImageError.

    Raises:
        RunError: the pixels are not of the view's `size`, by which grids and masks are made.
    """
    seed_shared(seed)
    pixels, box = view(image)
    if tuple(pixels.shape) != (wanted := (3, *view.size)):
        found = f"gives pixels {letters(pixels)}, and its size says [{' '.join(map(str, wanted))}]"
        raise RunError(f"the view {type(view).__name__} {found}")
    return pixels, box


def make_group(views: Views, seen: Sequence[Sequence[Seen]], mask: Mask | None) -> Group:
    """A group from what each image showed in each view."""
    flat = [images[n] for n in range(views.count) for images in seen]
    pixels, boxes = (torch.stack(some).unflatten(0, (views.count, -1)) for some in zip(*flat, strict=True))
    return Group(pixels, boxes, mask, views.role, normal(views.view, pixels))


def normal(view: View, pixels: Tensor) -> Tensor | None:
    """Factor and shift [2 3 1 1] that normalize a view's bytes; None if its pixels are normalized.

    Raises:
        RunError: they are bytes, and the view does not say what of.
    """
    if pixels.dtype != torch.uint8:
        return None
    try:
        mean, std = torch.tensor([view.mean, view.std])[..., None, None]  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError as error:
        raise RunError(f"the view {type(view).__name__} gives bytes, and has no mean and std: {error}") from error
    return torch.stack([1 / (255 * std), -mean / std])


def ready(view: View, pixels: Tensor) -> Tensor:
    """Stacked pixels of a view [n 3 H W] as an encoder reads them."""
    known = normal(view, pixels)
    return normalized(pixels, None if known is None else known.to(pixels.device))


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

    Pixels stay bytes where they are: `Batch.normalized` makes four times as many of one micro-batch at a time.

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


def first_views(data: Dataset, view: View, among: int, most: int, seed: int) -> Tensor:
    """A view of `most` images that can be read, of `among` all over the data set, normalized [n 3 H W].

    Not its first ones: those of a folder are of one class.
    """
    pixels = []
    for index in all_over(len(data), among):
        if len(pixels) == most:
            break
        try:
            pixels.append(look(view, read(data, index), derive_seed(seed, "monitor", index))[0])
        except ImageError:
            continue
    return ready(view, torch.stack(pixels)) if pixels else torch.zeros(0, 3, *view.size)


def all_over(count: int, some: int) -> Iterator[int]:
    """`some` different numbers below `count`, always the same and from all over: steps of a golden section."""
    stride = next(n for n in itertools.count(max(1, round(0.618 * count))) if math.gcd(n, count) == 1)
    return (number * stride % count for number in range(min(some, count)))


def fake_batch(
    sources: Sources,
    encoder: Encoder,
    images: int,
    device: torch.device | str = "cpu",
    *,
    seed: int = 0,
    at: Progress | int = 0,
    drawn: int | None = None,
    chance: int | None = None,
) -> Batch:
    """A batch with real masks and empty pixels, for the dry run; the data set is not touched.

    Masks are those of the first images of a step whose micro-batch has `drawn` images: their sizes may depend on it.
    `chance` as in `draw_mask`.
    """
    groups, rows, grids = {}, drawn or images, sources.grids(encoder)
    for name, views in sources.views.items():
        sampler = sources.masks.get(name)
        mask = None
        if sampler is not None:
            own = derive_seed(seed, name)
            whole = draw_mask(sampler, grids[name], own, at, range(rows), views.count, chance=chance)
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
