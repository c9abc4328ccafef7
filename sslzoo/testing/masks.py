"""Does a mask sampler keep its contract? Legal, independent of batch and worker, and even where it should be.

Checks run on several grids, square, oblong and tiny. Most look at the same many draws: an index out of range in one
image of a thousand is found. Statistics' thresholds are several standard errors wide, so a correct sampler does not
fail by chance (draws are seeded, so it would fail always or never).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sslzoo.contracts import Grid, Mask, MaskSampler, Patches, true_entries
from sslzoo.progress import Progress
from sslzoo.rng import Rng
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere
from sslzoo.testing.report import Check, Make, Skip, Violation, check, patience
from sslzoo.testing.scene import MANY, as_workers

GRIDS: tuple[Grid, ...] = ((14, 14), (8, 8), (8, 12), (12, 8))
TINY: tuple[Grid, ...] = ((1, 1), (1, 4), (2, 2), (3, 3), (4, 4), (2, 9))
ROWS, STEPS = 16, 200  # images of a draw, draws on each grid
APART = 997  # steps between two draws: over a long run, so that what changes on the way is seen
PATIENCE = 4.0  # seconds for a draw, after which it is taken to be endless
SIZES = (1, 2, 3, 5, 7, 12, 33)  # batches beside the one of `MANY` that they are compared with


_FIT: WeakKeyDictionary[Any, list[Grid]] = WeakKeyDictionary()  # by what makes the part


def _draw(sampler: Any, grid: Grid, step: int = 0, rows: Sequence[int] = range(ROWS)) -> Mask:
    number = step * APART
    at = Progress(number, max(STEPS * APART, number + 1))
    came = "none: it seems to loop without end, or draws image by image"
    with patience(PATIENCE, f"grid {grid}, step {number}, {len(rows)} images", came):
        return sampler(len(rows), grid, Rng(0, number, rows, at))


def _fit(make: Make) -> list[Grid]:
    """Grids that the sampler takes with these keys; it may refuse some, but not all."""
    if make in _FIT:
        return _FIT[make]
    found, refusal = [], ""
    for grid in GRIDS:
        try:
            _draw(make(), grid)
            found.append(grid)
        except ValueError as error:
            refusal = str(error)
    if not found:
        raise Violation("at least one grid it works on", f"every grid is refused, the last with: {refusal}", str(GRIDS))
    _FIT[make] = found
    return found


@dataclass(frozen=True)
class _Draws:
    """Many steps of each grid it takes, drawn in order by one sampler."""

    masks: dict[Grid, list[Mask]]
    used: tuple[str, ...]  # global generators that were drawn from or seeded

    def __iter__(self) -> Iterator[tuple[Grid, Mask, str]]:
        for grid, masks in self.masks.items():
            for step, mask in enumerate(masks):
                yield grid, mask, f"grid {grid}, step {step * APART}"


_DRAWS: WeakKeyDictionary[Any, _Draws] = WeakKeyDictionary()  # by what makes the part: drawn once for all checks


def _draws(make: Make) -> _Draws:
    if make not in _DRAWS:
        sampler, grids = make(), _fit(make)
        with _globals() as used:
            masks = {grid: [_draw(sampler, grid, step) for step in range(STEPS)] for grid in grids}
        _DRAWS[make] = _Draws(masks, tuple(used))
    return _DRAWS[make]


@contextmanager
def _globals(seed: int | None = None) -> Iterator[list[str]]:
    """Which global generators were used inside; they are put back."""
    torch_, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    used: list[str] = []
    try:
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        yield used
        after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        names = ("torch's global generator", "Python's random", "numpy.random")
        same = (torch.equal(before[0], after[0]), before[1] == after[1], before[2] == after[2])
        used += [name for name, kept in zip(names, same, strict=True) if not kept]
    finally:
        torch.set_rng_state(torch_)
        random.setstate(python)
        np.random.set_state(numpy)


made = offers(MaskSampler, lambda make: make())


@check(made)
def shapes(make: Make) -> None:
    """It returns a Mask: context [s k], target [s m q], s a multiple of the batch, indices int64."""
    for grid in _fit(make):
        mask, where = _draw(make(), grid), f"grid {grid}, step 0"
        if not isinstance(mask, Mask) or not all(isinstance(one, Patches) for one in (mask.context, mask.target)):
            raise Violation("a sslzoo.Mask of two sslzoo.Patches", repr(type(mask)), where)
        context, target = mask.context.index, mask.target.index
        for name, index in (("context", context), ("target", target)):
            if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.device.type != "cpu":
                found = f"{index.dtype} on {index.device}" if isinstance(index, Tensor) else type(index).__name__
                raise Violation(f"{name} indices int64 on the CPU", found, where)
        if context.ndim != 2 or target.ndim != 3:
            came = f"context {list(context.shape)}, target {list(target.shape)}"
            raise Violation("context [s k], target [s m q]", came, where)
        if len(context) != len(target) or len(context) % ROWS or not len(context):
            came = f"{len(context)} contexts and {len(target)} sequences of targets for a batch of {ROWS}"
            raise Violation("as many contexts as targets, a multiple of the batch", came, where)
        if mask.source is None and len(context) != ROWS:
            raise Violation("source, where several sequences read one view", "None", where)
        if mask.source is not None and (
            mask.source.shape != (len(context),) or not 0 <= int(mask.source.min()) <= int(mask.source.max()) < ROWS
        ):
            raise Violation(f"source [s], views 0 to {ROWS - 1}", f"{mask.source.tolist()}", where)


@check(shapes)
def cost(make: Make) -> str:
    """Masks of 128 images take less time than an image does."""
    (grid, *_) = _fit(make)
    sampler, each = make(), []
    with patience(PATIENCE, f"grid {grid}, 128 images", "more than that; draw the whole batch at once"):
        for step in range(4):
            started = time.thread_time()  # of this thread alone: a busy machine changes nothing
            sampler(128, grid, Rng(0, step, range(128)))
            each.append((time.thread_time() - started) / 128)
    if min(each) > 2e-3:
        came = f"{min(each) * 1e3:.1f} ms; draw the whole batch at once"
        raise Violation("less than 2 ms an image", came, f"grid {grid}, 128 images")
    return f"{min(each) * 1e6:.0f} us an image"


@check(shapes, cost)
def legal(make: Make) -> str:
    """Indices are of patches of the grid; every context has some (of a target nothing may be asked)."""
    for grid, mask, where in _draws(make):
        _legal(mask, grid, where)
    return f"{STEPS * ROWS} images on each grid"


def _legal(mask: Mask, grid: Grid, where: str) -> None:
    last = grid[0] * grid[1] - 1
    for name, patches, least in (("context", mask.context, 1), ("target", mask.target, 0)):
        index, length = patches.index, patches.length
        if index.dtype != torch.int64:
            raise Violation(f"{name} indices int64", str(index.dtype), where)
        if not index.numel():
            raise Violation(f"at least one patch in every {name} row", f"{name} {list(index.shape)}", where)
        if length is not None and length.shape != index.shape[:-1]:
            raise Violation(f"{name} lengths {list(index.shape[:-1])}", str(list(length.shape)), where)
        if length is not None and not least <= int(length.min()) <= int(length.max()) <= index.shape[-1]:
            wrong = (length < least) | (length > index.shape[-1])
            row = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0, 0])
            came = f"lengths {length[row].tolist()}"
            raise Violation(
                f"{least} to {index.shape[-1]} true patches in every {name} row", came, f"{where}, image {row}"
            )
        wrong = (index < 0) | (index > last)
        if wrong.any():
            row = int(wrong.flatten(1).any(1).nonzero()[0, 0])
            came = f"{index[row][wrong[row]].unique().tolist()}"
            raise Violation(f"{name} indices from 0 to {last}", came, f"{where}, image {row}")


@check(legal)
def unique(make: Make) -> None:
    """No patch stands twice in a context or in a target block."""
    for _, mask, where in _draws(make):
        for name, patches in (("context", mask.context), ("target", mask.target)):
            # Padding becomes numbers below 0, each its own.
            own = torch.where(_true(patches), patches.index, -1 - torch.arange(patches.index.shape[-1]))
            rows = own.sort(-1).values.flatten(0, -2)
            twice = rows[:, 1:] == rows[:, :-1]
            if twice.any():
                row = int(twice.any(1).nonzero()[0, 0])
                came = f"{rows[row, 1:][twice[row]].unique().tolist()} more than once"
                raise Violation(f"each patch once in a {name} row", came, f"{where}, row {row}")


@check(unique)
def several(make: Make) -> None:
    """Where an image is asked for several blocks, they are not all one block."""
    for grid, masks in _draws(make).masks.items():
        if any(_differ(mask.target, grid) for mask in masks):
            continue
        came = f"{masks[0].target.index.shape[1]} times the same in every image of {STEPS} steps"
        raise Violation("target blocks that differ", f"{came}: is one corner used for all?", f"grid {grid}")


def _differ(target: Patches, grid: Grid) -> bool:
    """Whether some image has two blocks that are not alike, or all have one."""
    asked = _covers_each(target, grid)
    return asked.shape[1] < 2 or bool((asked != asked[:, :1]).any())


@check(legal)
def disjoint(make: Make) -> None:
    """What must be guessed is not seen (a sampler that declares `overlap = True` may show it)."""
    if getattr(make(), "overlap", False):
        raise Skip("declares overlap")
    for grid, mask, where in _draws(make):
        seen, asked = (_covers(patches, grid) for patches in (mask.context, mask.target))
        both = seen & asked
        if both.any():
            row = int(both.any(1).nonzero()[0, 0])
            came = f"patches {both[row].nonzero()[:, 0].tolist()} in both"
            raise Violation("context and target disjoint", came, f"{where}, image {row}")


@check(legal)
def lengths(make: Make) -> str:
    """Context lengths differ within a batch only if it declares `ragged = True`."""
    sampler, shares = make(), []
    for grid, mask, where in _draws(make):
        length = mask.context.length
        if length is not None and not sampler.ragged:
            found = sorted(set(length.tolist()))
            raise Violation("contexts of one length, or ragged = True", f"lengths {found}", where)
        shares.append(_true(mask.context).expand_as(mask.context.index).sum(-1) / (grid[0] * grid[1]))
    x = torch.cat(shares)
    return f"context {x.mean():.2f} of the image, from {x.min():.2f} to {x.max():.2f}"


@check(legal)
def chance(make: Make) -> None:
    """Chance comes from the given Rng alone, not from global generators."""
    used = _draws(make).used
    if used:
        raise Violation("numbers from rng", f"{' and '.join(used)} {'was' if len(used) == 1 else 'were'} used", "")


@check(chance)
def repeats(make: Make) -> None:
    """The same seed, step and samples give the same masks, whatever was drawn before."""
    sampler = make()
    with _globals(seed=7):
        for grid, masks in reversed(_draws(make).masks.items()):
            for step in reversed(range(len(masks))):
                if not _same(masks[step], _draw(sampler, grid, step)):
                    came = "others by a new sampler that drew the steps backwards: it keeps something between calls, "
                    came += "draws from numbers of its own, or changes tensors that it returned"
                    raise Violation("the same masks", came, f"grid {grid}, step {step * APART}")


@check(repeats)
def workers(make: Make) -> None:
    """The same masks come from a worker process."""
    grid, masks = next(iter(_draws(make).masks.items()))
    sampler = make()  # before the fork, as in a run

    def drawn(_number: int) -> Any:
        return [_plain(_draw(sampler, grid, step)) for step in range(3)]

    if as_workers(drawn, make)[0] != [_plain(mask) for mask in masks[:3]]:
        raise Violation("the same masks in a worker process", "others", f"grid {grid}, step 0")


@check(repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    sampler = make()
    wheres = [(grid, step) for grid in _fit(make) for step in range(4)]
    return {f"mask on grid {grid}, step {step}": _plain(_draw(sampler, grid, step)) for grid, step in wheres}


@check(repeats)
def batches(make: Make) -> None:
    """An image's mask does not depend on the batch it is drawn with."""
    sampler, many = make(), MANY
    for grid in _fit(make):
        for step in range(2):
            whole = _by_image(_draw(sampler, grid, step, range(many)), many)
            for size in SIZES:
                for rows in (range(size), range(many - size, many)):
                    part = _by_image(_draw(sampler, grid, step, rows), size)
                    row = next((row for row, one in zip(rows, part, strict=True) if one != whole[row]), None)
                    if row is None:
                        continue
                    one, other = len(whole[row][0][0]), len(part[row - rows[0]][0][0])
                    came = f"{one} patches of context among {many}, {other} among {size}"
                    came = came if one != other else f"another mask among {size} than among {many}"
                    smallest = f"grid {grid}, step {step * APART}, image {row}"
                    raise Violation("one mask whatever the batch", came, smallest)


@check(legal)
def oblong(make: Make) -> None:
    """Grids need not be square, and need not be large: refused with a ValueError at once, or served."""
    for grid in TINY + GRIDS:
        for step in range(3):
            try:
                mask = _draw(make(), grid, step)
            except ValueError:
                continue
            _legal(mask, grid, f"grid {grid}, step {step * APART}")


@check(legal)
def upright(make: Make) -> None:
    """Indices are row-major, row * columns + column, on oblong grids too."""
    masks = _draws(make).masks
    square = [grid for grid in masks if grid[0] == grid[1]]
    for name in ("target", "context"):
        own, turned = (_together(masks, name, (grid for grid in masks if grid not in square), t) for t in (False, True))
        like = _together(masks, name, square, turned=False) if square else math.inf  # as where rows are as columns
        if turned > 1.4 * own and like > 1.2 * own:
            times = f"{turned / max(own, 1e-2):.1f} times as many"
            came = f"{times} neighbors if read column by column: rows taken for columns"
            raise Violation(f"{name} blocks that hold together on the grid", came, f"grids {(8, 12)} and {(12, 8)}")


def _together(masks: dict[Grid, list[Mask]], name: str, grids: Iterable[Grid], turned: bool) -> float:
    """Neighbors among the patches of masks, as often as if chance had strewn them."""
    found = chance = 0.0
    for grid in grids:
        covers = torch.cat([_covers(getattr(mask, name), grid) for mask in masks[grid]])
        x = covers.unflatten(1, grid[::-1] if turned else grid)
        found += int((x[:, :, 1:] & x[:, :, :-1]).sum() + (x[:, 1:] & x[:, :-1]).sum())
        rows, columns, many = *grid, covers.sum(1).double()
        pairs = rows * (columns - 1) + columns * (rows - 1)
        chance += (pairs * (many / (rows * columns)).square()).sum().item()
    return found / max(chance, 1e-9)


@check(legal)
def reaches(make: Make) -> str:
    """Every patch is asked for sometimes, and every patch at the border is seen sometimes."""
    for grid, (seen, asked) in _maps(make):
        border = torch.ones(grid, dtype=torch.bool)
        border[1:-1, 1:-1] = False  # what lies inside may always be hidden, as by one large block
        for name, share, wanted in (("seen", seen, border), ("asked for", asked, torch.ones_like(border))):
            never = ((share == 0) & wanted).nonzero().tolist()
            if never:
                text = f"{len(never)} patches never {name} in {STEPS * ROWS} draws, {_where(never, grid)}"
                raise Violation(f"every patch {name} sometimes", text, f"grid {grid}\n{_drawn(share)}")
    return f"{STEPS * ROWS} draws on each grid"


@check(legal)
def mirrored(make: Make) -> None:
    """Top and bottom, left and right are treated alike."""
    for grid, maps in _maps(make):
        for name, share in zip(("seen", "asked for"), maps, strict=True):
            for axis, words in ((0, ("top", "bottom")), (1, ("left", "right"))):
                half = grid[axis] // 2
                first = share.narrow(axis, 0, half).mean().item()
                last = share.narrow(axis, grid[axis] - half, half).mean().item()
                if half and abs(first - last) > 0.12 * max(first, last):
                    came = f"{first:.3f} of the {words[0]} half, {last:.3f} of the {words[1]}"
                    hint = "; a cut in raster order does this" if axis == 0 and first > last else ""
                    raise Violation(f"halves {name} equally often", came + hint, f"grid {grid}\n{_drawn(share)}")


@check(legal, slow=True)
def apart(make: Make) -> str:
    """Scale and aspect of target blocks are drawn apart (where blocks are rectangles of several shapes)."""
    sampler, sizes, grid = make(), [], (56, 56)  # fine, so that rounding to whole patches ties them little
    for step in range(300):
        try:
            block = _draw(sampler, grid, step, (0,)).target.index[0, 0]
        except ValueError as error:
            raise Skip(f"refuses a grid of 56 x 56: {error}") from error
        rows, columns = block // grid[1], block % grid[1]
        size = (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)
        if size[0] * size[1] != len(block.unique()):
            raise Skip("target blocks are no rectangles")
        sizes.append(size)
    tall = torch.tensor(sizes, dtype=torch.float64)
    area, aspect = tall[:, 0] * tall[:, 1], tall[:, 0] / tall[:, 1]
    if len(area.unique()) < 3 or len(aspect.unique()) < 3:
        raise Skip("one size or one aspect only")
    found = _rank_correlation(area, aspect)
    if abs(found) > 0.5:
        came = f"rank correlation {found:.2f}: large blocks are {'tall' if found > 0 else 'wide'}"
        raise Violation("scale and aspect drawn apart", f"{came}, as from one random number", f"grid {grid}, 300 steps")
    return f"rank correlation {found:.2f}"


CHECKS: tuple[Check, ...] = (made, shapes, cost, legal, unique, several, disjoint, lengths, chance, oblong, upright)
CHECKS += (reaches, mirrored, repeats, workers, batches, apart, processes)


def _maps(make: Make) -> Iterator[tuple[Grid, tuple[Tensor, Tensor]]]:
    """How often each patch is seen and asked for on each grid, [h w] each, over `STEPS * ROWS` draws."""
    for grid, masks in _draws(make).masks.items():
        if all(_one_for_all(mask) for mask in masks[:10]):  # drawn once a step: as many draws take as many steps
            sampler = make()
            masks = [_draw(sampler, grid, step, (0,)) for step in range(STEPS * ROWS)]
        seen, asked = (
            torch.cat([_covers(getattr(mask, name), grid) for mask in masks]) for name in ("context", "target")
        )
        yield grid, (seen.float().mean(0).reshape(grid), asked.float().mean(0).reshape(grid))


def _one_for_all(mask: Mask) -> bool:
    """Whether all images share one mask."""
    context, target = mask.context.index, mask.target.index
    return (
        mask.source is None
        and torch.equal(context, context[:1].expand_as(context))
        and bool((target == target[:1]).all())
    )


def _true(patches: Patches) -> Tensor:
    """Which entries are no padding: broadcasts to the index."""
    most = patches.index.shape[-1]
    return torch.ones(most, dtype=torch.bool) if patches.length is None else true_entries(patches.length, most)


def _covers(patches: Patches, grid: Grid) -> Tensor:
    """Which patches the blocks of each sequence cover, all its blocks together: bool [s N]."""
    covers = _covers_each(patches, grid)
    return covers.any(1) if covers.ndim == 3 else covers


def _covers_each(patches: Patches, grid: Grid) -> Tensor:
    """Which patches each row covers: bool [s N] of contexts, [s m N] of targets."""
    whole = grid[0] * grid[1]
    index = torch.where(_true(patches), patches.index, whole)
    return torch.zeros(*index.shape[:-1], whole + 1, dtype=torch.bool).scatter_(-1, index, True)[..., :whole]


def _plain(mask: Mask) -> tuple[list[list[int]], list[list[int]]]:
    """True entries of each context, and of each block of each sequence."""
    found = []
    for patches in (mask.context, mask.target):
        rows, true = patches.index.flatten(0, -2), _true(patches).expand_as(patches.index).flatten(0, -2).sum(-1)
        found.append([row[:length] for row, length in zip(rows.tolist(), true.tolist(), strict=True)])
    return found[0], found[1]


def _by_image(mask: Mask, images: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    """What each image sees and is asked, over all its sequences."""
    context, target = _plain(mask)
    blocks = mask.target.index.shape[1]
    source = list(range(images)) if mask.source is None else mask.source.tolist()
    found: list[tuple[list[list[int]], list[list[int]]]] = [([], []) for _ in range(images)]
    for sequence, image in enumerate(source):
        found[image][0].append(context[sequence])
        found[image][1].extend(target[sequence * blocks : (sequence + 1) * blocks])
    return found


def _same(one: Mask, other: Mask) -> bool:
    plain = one.context.length is None and one.target.length is None
    if plain and other.context.length is None and other.target.length is None:
        return torch.equal(one.context.index, other.context.index) and torch.equal(one.target.index, other.target.index)
    return _plain(one) == _plain(other)


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x.numpy(), y.numpy())[0])  # type: ignore[arg-type]


def _where(patches: list[list[int]], grid: Grid) -> str:
    rows, columns = {row for row, _ in patches}, {column for _, column in patches}
    if len(rows) == 1 and len(patches) == grid[1]:
        return f"row {rows.pop()} of 0 to {grid[0] - 1}"
    if len(columns) == 1 and len(patches) == grid[0]:
        return f"column {columns.pop()} of 0 to {grid[1] - 1}"
    return f"the first at row {patches[0][0]}, column {patches[0][1]}"


def _drawn(share: Tensor) -> str:
    """A map in characters: how often each patch, in tenths; a dot is never."""
    lines = []
    for row in share.tolist():
        lines.append("                   " + " ".join("." if x == 0 else str(min(9, int(x * 10))) for x in row))
    return "\n".join(lines)
