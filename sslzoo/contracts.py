"""What do the parts of a method say to each other?

The data types that cross between families, and one Protocol per family. Nothing here computes beyond indexing.

Legend, valid in every annotation and docstring of the project:

    b images in the local batch        v views the student reads      u views the teacher reads
    H W pixels   h w patch grid          N = h*w patches of a view      d encoder width, e width of a signal
    s sequences through the encoder      k patches seen in a sequence   r prefix tokens (class, registers)
    m target blocks in a sequence        q patches in a block           t real target patches in the batch
    p prototypes                         n patches seen in the batch    sequences are ordered (c v b): copies
                                                                        outermost, images fastest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from sslzoo.progress import Progress
from sslzoo.rng import Rng

CPU = torch.device("cpu")
Grid = tuple[int, int]  # rows, columns of patches
Role = Literal["context", "target", "both"]
Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Patches:
    """Some patches of each sequence, as row-major indices in its grid.

    Short rows repeat a legal index, so a gather is always valid; `length` then says how many entries of a row are
    true, and `real` holds their flat positions. `real` is worked out here, on the CPU, so that a device never searches.
    """

    index: Int[Tensor, "s *m k"]
    length: Int[Tensor, "s *m"] | None = None
    real: Int[Tensor, " t"] | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.real is None:
            if self.index.device.type != "cpu":
                raise ValueError("ragged Patches are made on the CPU, in the mask sampler; then moved with .to(device)")
            true = true_entries(self.length, self.index.shape[-1])
            object.__setattr__(self, "real", true.flatten().nonzero()[:, 0])

    def take(self, x: Float[Tensor, "s N d"]) -> Float[Tensor, "s *m k d"]:
        """The tokens of `x` at these patches."""
        flat = self.index.flatten(1)
        return x.gather(1, flat[..., None].expand(-1, -1, x.shape[-1])).unflatten(1, self.index.shape[1:])

    def flat(self, y: Float[Tensor, "s *m k d"]) -> Float[Tensor, "t d"]:
        """Rows of `y` one under another, padding dropped: sequence by sequence, block by block."""
        rows = y.flatten(0, -2)
        return rows if self.real is None else rows.index_select(0, self.real)

    @property
    def count(self) -> int:
        """How many true entries there are: t."""
        return self.index.numel() if self.real is None else len(self.real)

    def cu_seqlens(self) -> Int[Tensor, " s+1"]:
        """Running sum of row lengths, starting at 0, as variable-length attention wants it (int32)."""
        rows = self.index.shape[:-1]
        length = self.length if self.length is not None else self.index.new_full(rows, self.index.shape[-1])
        return nn.functional.pad(length.flatten().cumsum(0), (1, 0)).to(torch.int32)

    def map(self, move: Move) -> Patches:
        """The same patches, each tensor passed through `move`."""
        return Patches(move(self.index), _maybe(move, self.length), _maybe(move, self.real))

    def to(self, device: torch.device | str) -> Patches:
        """The same patches on another device."""
        return self.map(_to(device))


@dataclass(frozen=True)
class Mask:
    """What may be seen and what must be guessed.

    `source` names the view row a sequence reads, for several contexts of one view; None: sequence i reads view row i.
    """

    context: Patches  # [s k]
    target: Patches  # [s m q]
    source: Int[Tensor, " s"] | None = None

    def rows(self, x: Tensor) -> Tensor:
        """`x`, one row a view, as one row a sequence."""
        return x if self.source is None else x.index_select(0, self.source)

    def map(self, move: Move) -> Mask:
        """The same mask, each tensor passed through `move`."""
        return Mask(self.context.map(move), self.target.map(move), _maybe(move, self.source))

    def to(self, device: torch.device | str) -> Mask:
        """The same mask on another device."""
        return self.map(_to(device))


@dataclass(frozen=True)
class Group:
    """All views of one kind: same size, same augmentation, same reader."""

    pixels: Float[Tensor, "v b 3 H W"]  # on the way to the device: bytes, if `normal` says what they mean
    boxes: Float[Tensor, "v b 4"]  # top, left, height, width, as fractions of the image
    mask: Mask | None = None
    role: Role = "both"  # who reads it: the student (context), the teacher (target) or both
    normal: Float[Tensor, "2 3 1 1"] | None = None  # factor and shift of each channel that normalize bytes
    lots: Int[Tensor, " s"] | None = None  # of each sequence, what its chances follow from (`sslzoo.nn.DropPath`)

    def map(self, move: Move) -> Group:
        """The same views, each tensor passed through `move`."""
        mask = None if self.mask is None else self.mask.map(move)
        normal = None if self.normal is None else move(self.normal)
        return Group(move(self.pixels), move(self.boxes), mask, self.role, normal, _maybe(move, self.lots))

    def normalized(self) -> Group:
        """The same views with pixels as encoders read them."""
        return replace(self, pixels=normalized(self.pixels, self.normal), normal=None)


@dataclass(frozen=True)
class Pairing:
    """How rows of a signal weigh, and which views may meet. A loss is given that of the signal it reads.

    Losses of rows (target patches t, or patches seen n) sum `weight * row`: the weights are scaled so that summing
    here and averaging gradients over ranks and micro-batches gives the mean over all real rows of the step. `match` is
    false where student and teacher would read the same view; `pairs`, how many may meet, is known without the device.
    """

    weight: Float[Tensor, " t"]
    match: Bool[Tensor, "v u"]
    sequence: Int[Tensor, " t"]  # which sequence a row belongs to, 0 .. sequences-1
    sequences: int = 0  # sequences with a mask in this micro-batch: s
    blocks: int = 0  # target blocks in this micro-batch: s*m
    pairs: int | None = None  # pairs of views that may meet: true entries of `match`

    def __post_init__(self) -> None:
        if self.pairs is None and self.match.device.type == "cpu":
            object.__setattr__(self, "pairs", int(self.match.sum()))

    def map(self, move: Move) -> Pairing:
        """The same pairing, each tensor passed through `move`."""
        moved = move(self.weight), move(self.match), move(self.sequence)
        return Pairing(*moved, self.sequences, self.blocks, self.pairs)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: groups of views in recipe order (which is the order of v and u), and how they pair.

    `pairing` is of target patches (and images), `seen` of the patches that the student saw: signal `encoder.context`.
    """

    groups: Mapping[str, Group]
    pairing: Pairing
    samples: tuple[int, ...] = ()  # indices in the data set, in order of b
    unreadable: tuple[tuple[int, str], ...] = ()  # images another one stands in for, and why
    seen: Pairing | None = None

    def map(self, move: Move) -> Batch:
        """The same batch, each tensor passed through `move`."""
        groups = {name: group.map(move) for name, group in self.groups.items()}
        seen = None if self.seen is None else self.seen.map(move)
        return Batch(groups, self.pairing.map(move), self.samples, self.unreadable, seen)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self.map(_to(device))

    def normalized(self) -> Batch:
        """The same batch with pixels as encoders read them."""
        return replace(self, groups={name: group.normalized() for name, group in self.groups.items()})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the data loader calls this."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Tokens:
    """What an encoder saw of each sequence. `patches` holds patches only, so an index always means a patch."""

    patches: Float[Tensor, "s k d"]
    index: Int[Tensor, "s k"]
    summary: Float[Tensor, "s d"]  # the encoder's own vector for the image: class token, mean, pooled map
    grid: Grid
    prefix: Float[Tensor, "s r d"] | None = None  # class token first, then registers
    layers: tuple[Float[Tensor, "s k d"], ...] = ()  # outputs of the last n blocks when asked, last one last
    length: Int[Tensor, " s"] | None = None  # true tokens of each row where contexts are ragged
    prefixes: tuple[Float[Tensor, "s r d"], ...] = ()  # the prefix tokens of those last blocks, where there are any

    def at(self, target: Patches) -> Float[Tensor, "s *m q d"]:
        """The tokens at target patches; only an encoder that keeps hidden patches (hidden: fill) has them.

        Raises:
            ValueError: hidden patches were dropped, so target patches are not among the tokens.
        """
        if self.patches.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"tokens hold {self.patches.shape[1]} of {self.grid[0]} x {self.grid[1]} patches: hidden patches were "
                "dropped, so there is nothing to read at target patches; set encoder.hidden to fill"
            )
        return target.take(self.patches)

    def seen(self, context: Patches) -> Float[Tensor, "n d"]:
        """The tokens of the patches of `context`, one under another, padding dropped."""
        if (self.length is None) == (context.length is None) and self.patches.shape[1] == context.index.shape[1]:
            return context.flat(self.patches)
        return context.flat(context.take(self.patches))


@dataclass(frozen=True)
class Signal:
    """The output spec of a signal: what its rows stand for, and their width.

    A `patch` signal is [t e], a row for each target patch. An `image` signal is [v b e], from target generators
    [u b e]. A `context` signal is [n e], a row for each patch that the student saw in groups with masks; there is one,
    `encoder.context`, the context encoder's own tokens, and losses may read it.

    A target generator whose signal is class ids says `ids=True`: whole numbers from 0 to width-1, int64 [t] or [u b],
    of `width` classes. They are compared with a prediction of the same kind and width (logits) by a loss with
    `class_ids = True`.
    """

    kind: Literal["patch", "image", "context"]
    width: int
    ids: bool = False


@dataclass(frozen=True)
class Reading:
    """The student output of one step: tokens of each group, and its signals over all groups."""

    tokens: Mapping[str, Tokens]
    signals: Mapping[str, Tensor]


@dataclass(frozen=True)
class Features:
    """Frozen features of a data set with its labels: what a probe reads."""

    x: Float[Tensor, "n d"]
    labels: Mapping[str, Int[Tensor, " n"]]  # by task
    tasks: Mapping[str, int] = field(default_factory=dict)  # classes of each task
    device: torch.device = CPU  # where a probe may compute; x and labels lie on the CPU
    pools: Mapping[str, Float[Tensor, "n e"]] = field(default_factory=dict)  # those that a probe asked for, by name
    images: Images | None = None  # what they are features of
    prints: Int[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # a hash of its pixels


class Student(nn.Module):
    """The two parts that learn by guessing. Target generators are made from it and follow it."""

    def __init__(self, encoder: Encoder, predictor: Predictor) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor


# --- families ---------------------------------------------------------------------------------------------------------
# Before the `*` of a constructor comes what the engine gives; after it, what the recipe gives: annotated keyword-only
# arguments are schema, defaults and documentation at once. Structural types only: nobody inherits from the engine,
# except that parts with parameters or buffers are nn.Modules.


@runtime_checkable
class Dataset(Protocol):
    """Images by number. Made with `(*, ...)`.

    It may also have `fingerprint`, text that changes when its list of images does (cheap: a run that goes on asks for
    it), `class_names`, the names of the classes of each task: by them, training and test data of an evaluation
    agree on what a number means; `decoder`, what makes pixels of its files: other pixels would be other data; and
    `advice`, a sentence that the start of a run tells, such as on what makes random order slow.
    """

    tasks: Mapping[str, int]  # label tasks and their number of classes; empty where there are no labels

    def __len__(self) -> int: ...

    def image(self, i: int) -> object:
        """Image i as an RGB PIL image, or a uint8 tensor [3 H W]. Raises OSError (or ValueError) if unreadable.

        Of a JPEG it may be a `Photo`, a PIL image that decodes no more than a view asks for.
        """
        ...

    def label(self, i: int) -> Mapping[str, int]:
        """Class of image i in each task."""
        ...


@runtime_checkable
class View(Protocol):
    """One random view of an image. Made with `(*, ...)`; torch, random and numpy are seeded by the engine.

    Its pixels are float32, normalized; or bytes, and then it says `mean` and `std`, three numbers each for pixels in
    [0, 1]: the engine normalizes them on the device, and a quarter of the memory travels there.
    """

    size: tuple[int, int]  # H, W

    def __call__(self, image: object) -> tuple[Float[Tensor, "3 H W"] | UInt8[Tensor, "3 H W"], Float[Tensor, " 4"]]:
        """Pixels, and the box they were cut from: top, left, height, width as fractions of the image."""
        ...


@runtime_checkable
class MaskSampler(Protocol):
    """What may be seen, what must be guessed. Made with `(*, ...)`. Runs in loader workers, on the CPU.

    One whose rows depend on the batch they are drawn with also sets `batchwise = True`: a run with it is resumed with
    the micro-batch it began with, which `run.micro` or another number of processes would change.
    """

    ragged: bool  # true if context lengths may differ from row to row

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Masks of `batch` sequences, row i from row i of `rng` alone."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Who sees. Made with `(*, ...)`; an nn.Module.

    One whose blocks have an MLP may set `gives_mlp = True`, and take `mlp=True` beside `layers`: then the layers are
    what the MLP of each block says, in place of its output (data2vec 2.0).

    One whose weights have other names in released code may have `published(weights)`: tensors by those names, or by its
    own, to tensors by its own (`sslzoo import`). It raises ValueError where they are those of another encoder.
    """

    width: int
    ragged: bool  # true if it accepts contexts whose lengths differ
    blocks: nn.ModuleList  # what is compiled and sharded piece by piece

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of patches of an image of this size. Raises ValueError where it does not fit."""
        ...

    def __call__(self, pixels: Float[Tensor, "s 3 H W"], context: Patches | None = None, layers: int = 0) -> Tokens:
        """Tokens of the patches in `context` (None: all), with the outputs of the last `layers` blocks."""
        ...


@runtime_checkable
class Predictor(Protocol):
    """Who guesses. Made with `(encoder, *, ...)`; an nn.Module. Patch signals [t e], image signals [s e].

    Called with `target=None` for a group without a mask, it returns its image signals only.
    """

    outputs: Mapping[str, Signal]
    projector: nn.Module | None  # what a teacher must copy beside the encoder, if it is asked to
    blocks: nn.ModuleList

    def __call__(self, tokens: Tokens, target: Patches | None, at: Progress) -> Mapping[str, Tensor]:
        """One tensor for each of `outputs`."""
        ...


@runtime_checkable
class TargetGenerator(Protocol):
    """What is right. Made with `(student, *, ...)`; an nn.Module that owns any teacher.

    After a step that was not finite, nothing of it may change: the engine copies its tensors before `after_step`, to
    put them back. A large one does without the copies: with `gated = True`, `after_step` is also given `finite` (0-d
    bool, on the device), and moves nothing where that is false (`sslzoo.nn.follow`).
    """

    outputs: Mapping[str, Signal]

    def __call__(self, batch: Batch, student: Reading, at: Progress) -> Mapping[str, Tensor]:
        """One tensor for each of `outputs`."""
        ...

    def after_step(self, student: Student, at: Progress) -> None:
        """Called once after every optimizer step: teachers follow here, and only here."""
        ...


@runtime_checkable
class Loss(Protocol):
    """How wrong the guess was. Made with `(signal, *, ...)`; an nn.Module, written for one process.

    A loss that relates images to each other (negatives, moments) also sets `whole_batch = True`; one whose target is
    class ids sets `class_ids = True`; one that takes the mean of rows by itself, from `pairing.sequence` or
    `pairing.blocks` and not by their weights, `own_mean = True`. `signal` is the output spec of its prediction; a loss
    refuses with a ValueError a kind that it does not read.
    """

    needs_target: bool

    def __call__(
        self, prediction: Tensor, target: Tensor | None, pairing: Pairing, at: Progress
    ) -> tuple[Float[Tensor, ""], Mapping[str, Float[Tensor, ""]]]:
        """The value to minimize, and figures to log."""
        ...


@runtime_checkable
class Optimizer(Protocol):
    """How weights move. Made with `(groups, *, ...)`, torch's parameter groups; a `torch.optim.Optimizer`.

    The engine writes `lr` and `weight_decay` into the groups before every step, and gives no gradient to parameters
    that are frozen. State is tensors by parameter, and a count `step` of a group; all of it is saved by name.
    """

    shards: bool  # true if it may be given pieces of weights (DTensors, run.shard)

    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        ...


class Images(Protocol):
    """The images that features came from, and the encoder: for a probe that reads more than one feature of each."""

    @property
    def encoder(self) -> Any:
        """The Encoder, on the device: whoever trains it trains a copy."""
        ...

    @property
    def augmented(self) -> bool:
        """Whether there is a view with randomness, `evaluate.augment`."""
        ...

    @property
    def bf16(self) -> bool:
        """Whether the run computes in it."""
        ...

    def pages(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[Float[Tensor, "b 3 H W"]]:
        """Images by number, batch after batch, on the device, as the encoder reads them.

        With a seed through `evaluate.augment`, if there is one; an image's chances follow from seed and number. Torch,
        random and numpy may have other seeds after each batch. Raises RunError where an image cannot be read.
        """
        ...

    def pools(self, names: Sequence[str], seed: int) -> Mapping[str, Float[Tensor, "n e"]]:
        """Pools as in `Features.pools`, of all images through `evaluate.augment`."""
        ...

    def load(self, name: str) -> Mapping[str, Tensor]:
        """What was saved under this name for this encoder, data and view; nothing if there is none."""
        ...

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps what a long probe has done, in the place of what it saved before; no tensors: keeps nothing."""
        ...


@runtime_checkable
class Probe(Protocol):
    """An evaluation of frozen features, or of what becomes of a copy of the encoder. Made with `(*, ...)`.

    One that reads more than the recipe's own pooling `x` names it in `pools`, and finds it in `Features.pools`: mean
    (over patches of the last block, after the final norm), mean4 (of the last four, each after the final norm, side by
    side), class and class4 (the class token). The images are behind `Features.images`; it may have
    `check(encoder)`, which raises RunError where it cannot use an encoder, and is asked before a run; `reads_x`, False
    where figures do not depend on `x`; and `protocol`, a whole number (1 where it has none) that grows when figures of
    the same keys come to mean another thing: figures of unlike protocols are told apart.
    """

    def __call__(self, train: Features, test: Features, seed: int) -> Mapping[str, float | Tensor]:
        """Figures by name, such as `count/top1`, in percent or in the unit that the docstring names.

        `TASK/correct`, a bool tensor [n], may stand beside: which test images were told right (of several draws: in
        what share of them, as floats). It is kept in a file of its own, for comparisons that resample test images.
        """
        ...


def true_entries(length: Int[Tensor, "s *m"], most: int) -> Bool[Tensor, "s *m k"]:
    """Which entries of ragged rows are true: the first `length` of the `most` that each row has."""
    return torch.arange(most, device=length.device) < length[..., None]


def letters(x: Tensor) -> str:
    """A tensor's shape as the legend writes shapes: [2 49 384]."""
    return f"[{' '.join(map(str, x.shape))}]"


def normalized(pixels: Tensor, normal: Float[Tensor, "2 3 1 1"] | None) -> Tensor:
    """Pixels [... 3 H W] as encoders read them: bytes times factor, plus shift; without these they are so already."""
    return pixels if normal is None else torch.addcmul(normal[1], pixels, normal[0])


def _to(device: torch.device | str) -> Move:
    return lambda x: x.to(device, non_blocking=True)


def _maybe(move: Move, x: Tensor | None) -> Tensor | None:
    return None if x is None else move(x)


CONTRACTS: dict[str, type] = {
    "datasets": Dataset,
    "views": View,
    "masks": MaskSampler,
    "encoders": Encoder,
    "predictors": Predictor,
    "targets": TargetGenerator,
    "losses": Loss,
    "probes": Probe,
}  # an optimizer is torch's own: `isinstance` tells


def members(contract: type) -> tuple[str, ...]:
    """Names of all that a contract asks of a part: its attributes, then its methods."""
    methods = [name for name in vars(contract) if not name.startswith("_") or name in ("__call__", "__len__")]
    return (*contract.__annotations__, *methods)


def lacking(part: object, contract: type) -> Iterator[tuple[str, str]]:
    """What a part should have and has not: each name, and how its contract writes it."""
    for name in members(contract):
        if not hasattr(type(part) if name.startswith("__") else part, name):
            declared = contract.__annotations__.get(name)
            yield name, f"`{name}: {declared}`" if declared else f"`{name}`"
