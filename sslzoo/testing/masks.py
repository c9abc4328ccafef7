"""Does a mask sampler keep its contract? Legal, independent of batch and worker, and even where it should be.

Checks run on several grids, square, oblong and tiny. Statistics come from many steps; their thresholds are several
standard errors wide, so a correct sampler does not fail by chance (draws are seeded, so it would fail always or never).
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslzoo.contracts import Grid, Mask, Patches
from sslzoo.rng import Rng
from sslzoo.testing.report import Check, Skip, Violation, patience

GRIDS: tuple[Grid, ...] = ((14, 14), (8, 8), (8, 12), (12, 8))
TINY: tuple[Grid, ...] = ((1, 1), (1, 4), (2, 2), (3, 3), (4, 4), (2, 9))
ROWS = 8
Make = Callable[[], Any]


def _draw(sampler: Any, grid: Grid, step: int = 0, rows: tuple[int, ...] = tuple(range(ROWS))) -> Mask:
    with patience(10, f"grid {grid}, step {step}, rows {rows}"):
        return sampler(len(rows), grid, Rng(0, step, rows))


def _fit(make: Make) -> list[Grid]:
    """Grids that the sampler takes with these keys; it may refuse some, but not all."""
    found, refusal = [], ""
    for grid in GRIDS:
        try:
            _draw(make(), grid)
            found.append(grid)
        except ValueError as error:
            refusal = str(error)
    if not found:
        raise Violation("at least one grid it works on", f"every grid is refused, the last with: {refusal}", str(GRIDS))
    return found


def _true(patches: Patches) -> Iterator[tuple[int, list[int]]]:
    """True entries of each row (of each block of each sequence), with the row's number."""
    rows = patches.index.flatten(0, -2)
    lengths = [rows.shape[1]] * len(rows) if patches.length is None else patches.length.flatten().tolist()
    for number, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
        yield number, row[: int(length)]


def _each(make: Make, steps: int = 4) -> Iterator[tuple[Grid, int, Mask, str]]:
    sampler = make()
    for grid in _fit(make):
        for step in range(steps):
            yield grid, step, _draw(sampler, grid, step), f"grid {grid}, step {step}"


def shapes(make: Make) -> None:
    """It returns a Mask: context [s k], target [s m q], s a multiple of the batch."""
    for _, _, mask, where in _each(make, 1):
        if not isinstance(mask, Mask):
            raise Violation("a sslzoo.Mask", repr(type(mask)), where)
        context, target = mask.context.index, mask.target.index
        if context.ndim != 2 or target.ndim != 3:
            came = f"context {list(context.shape)}, target {list(target.shape)}"
            raise Violation("context [s k], target [s m q]", came, where)
        if len(context) != len(target) or len(context) % ROWS or not len(context):
            came = f"{len(context)} contexts and {len(target)} sequences of targets for a batch of {ROWS}"
            raise Violation("as many contexts as targets, a multiple of the batch", came, where)
        if len(context) != ROWS and mask.source is None:
            raise Violation("source, where several sequences read one view", "None", where)
        for name, index in (("context", context), ("target", target)):
            if index.dtype != torch.int64 or index.device.type != "cpu":
                raise Violation(f"{name} indices int64 on the CPU", f"{index.dtype} on {index.device}", where)


def legal(make: Make) -> None:
    """Indices are places of the grid; every row has some."""
    for grid, _, mask, where in _each(make):
        for name, patches in (("context", mask.context), ("target", mask.target)):
            low, high = int(patches.index.min()), int(patches.index.max())
            if low < 0 or high >= grid[0] * grid[1]:
                raise Violation(f"{name} indices from 0 to {grid[0] * grid[1] - 1}", f"{low} to {high}", where)
            for number, row in _true(patches):
                if not row:
                    raise Violation(f"at least one patch in every {name} row", f"none in row {number}", where)


def unique(make: Make) -> None:
    """No patch stands twice in a context or in a target block."""
    for _, _, mask, where in _each(make):
        for name, patches in (("context", mask.context), ("target", mask.target)):
            for number, row in _true(patches):
                twice = sorted({place for place in row if row.count(place) > 1})
                if twice:
                    raise Violation(
                        f"each patch once in a {name} row", f"{twice} more than once", f"{where}, row {number}"
                    )


def disjoint(make: Make) -> None:
    """What must be guessed is not seen (a sampler that declares `overlap = True` may show it)."""
    if getattr(make(), "overlap", False):
        raise Skip("declares overlap")
    for _, _, mask, where in _each(make):
        blocks = mask.target.index.shape[1]
        context = dict(_true(mask.context))
        for number, row in _true(mask.target):
            shown = sorted(set(row) & set(context[number // blocks]))
            if shown:
                raise Violation(
                    "context and target disjoint", f"patches {shown} in both", f"{where}, row {number // blocks}"
                )


def repeats(make: Make) -> None:
    """The same seed, step and samples give the same masks, whatever was drawn before."""
    for grid in _fit(make):
        sampler = make()
        first = _draw(sampler, grid, 5)
        for step in range(3):
            _draw(sampler, grid, step)
        for again, what in (
            (_draw(sampler, grid, 5), "drawn again later"),
            (_draw(make(), grid, 5), "by a new sampler"),
        ):
            if not _same(first, again):
                raise Violation("the same masks", f"others, {what}", f"grid {grid}, step 5")


def workers(make: Make) -> None:
    """Masks come from the given Rng alone: not from global random numbers, nor from the process that draws."""
    (grid, *_) = _fit(make)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        mask = _draw(make(), grid)
        if not torch.equal(before, torch.get_rng_state()):
            raise Violation("numbers from rng", "torch's global generator was used", f"grid {grid}, step 0")
        states.append(mask)
    if not _same(*states):
        raise Violation("the same masks under other global seeds", "others", f"grid {grid}, step 0")
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=lambda: (torch.set_num_threads(1), theirs.send(_plain(_draw(make(), grid)))))
    child.start()
    found = ours.recv() if ours.poll(20) else None
    child.join(1)
    child.kill()
    if found != _plain(states[0]):
        raise Violation("the same masks in a worker process", "others" if found else "none", f"grid {grid}, step 0")


def batches(make: Make) -> None:
    """An image's mask does not depend on the batch it is drawn with."""
    sampler = make()
    for grid in _fit(make):
        for step in range(4):
            rows = dict(_rows(_draw(sampler, grid, step), range(ROWS)))
            for row in (0, ROWS - 1):
                alone = dict(_rows(_draw(sampler, grid, step, (row,)), (row,)))[row]
                if alone != rows[row]:
                    came = f"{len(rows[row][0])} patches of context among {ROWS}, {len(alone[0])} alone"
                    came = came if len(alone[0]) != len(rows[row][0]) else "another mask when drawn alone"
                    raise Violation("the mask an image gets alone", came, f"grid {grid}, step {step}, sample {row}")


def lengths(make: Make) -> str:
    """Context lengths differ within a batch only if it declares `ragged = True`."""
    sampler = make()
    shares = []
    for grid in _fit(make):
        for step in range(8):
            mask = _draw(sampler, grid, step)
            if mask.context.length is not None and not sampler.ragged:
                found = sorted(set(mask.context.length.tolist()))
                raise Violation(
                    "contexts of one length, or ragged = True", f"lengths {found}", f"grid {grid}, step {step}"
                )
            shares += [len(row) / (grid[0] * grid[1]) for _, row in _true(mask.context)]
    x = torch.tensor(shares)
    return f"context {x.mean():.2f} of the image, from {x.min():.2f} to {x.max():.2f}"


def oblong(make: Make) -> None:
    """Grids need not be square, and need not be large: refused with a ValueError at once, or served."""
    for grid in TINY + GRIDS:
        try:
            mask = _draw(make(), grid)
        except ValueError:
            continue
        if int(mask.target.index.max()) >= grid[0] * grid[1] or int(mask.context.index.max()) >= grid[0] * grid[1]:
            raise Violation(f"indices below {grid[0] * grid[1]}", "larger ones", f"grid {grid}, step 0")


def reaches(make: Make) -> str:
    """Every patch is asked for sometimes, and every patch at the border is seen sometimes."""
    for grid in _fit(make):
        seen, asked = _maps(make, grid)
        border = torch.ones(grid, dtype=torch.bool)
        border[1:-1, 1:-1] = False  # what lies inside may always be hidden, as by one large block
        for name, share, wanted in (("seen", seen, border), ("asked for", asked, torch.ones_like(border))):
            never = ((share == 0) & wanted).nonzero().tolist()
            if never:
                text = f"{len(never)} patches never {name} in {_STEPS * ROWS} draws, {_where(never, grid)}"
                raise Violation(f"every patch {name} sometimes", text, f"grid {grid}\n{_drawn(share)}")
    return f"{_STEPS * ROWS} draws on each grid"


def mirrored(make: Make) -> None:
    """Top and bottom, left and right are treated alike."""
    for grid in _fit(make):
        for name, share in zip(("seen", "asked for"), _maps(make, grid), strict=True):
            for axis, words in ((0, ("top", "bottom")), (1, ("left", "right"))):
                half = grid[axis] // 2
                first = share.narrow(axis, 0, half).mean().item()
                last = share.narrow(axis, grid[axis] - half, half).mean().item()
                if half and abs(first - last) > 0.12 * max(first, last):
                    came = f"{first:.3f} of the {words[0]} half, {last:.3f} of the {words[1]}"
                    hint = "; a cut in raster order does this" if axis == 0 and first > last else ""
                    raise Violation(f"halves {name} equally often", came + hint, f"grid {grid}\n{_drawn(share)}")


def apart(make: Make) -> str:
    """Scale and aspect of target blocks are drawn apart (where blocks are rectangles of several shapes)."""
    sampler, sizes, grid = make(), [], (56, 56)  # fine, so that rounding to whole patches ties them little
    for step in range(300):
        block = _draw(sampler, grid, step, (0,)).target.index[0, 0]
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


def cost(make: Make) -> str:
    """Masks of 128 images take less time than an image does."""
    (grid, *_) = _fit(make)
    sampler = make()
    sampler(128, grid, Rng(0, 0, range(128)))
    started = time.perf_counter()
    for step in range(5):
        sampler(128, grid, Rng(0, step, range(128)))
    each = (time.perf_counter() - started) / (5 * 128)
    if each > 2e-3:
        raise Violation("less than 2 ms an image", f"{each * 1e3:.1f} ms; draw the whole batch at once", f"grid {grid}")
    return f"{each * 1e6:.0f} us an image"


_STEPS = 160
CHECKS: tuple[Check, ...] = (shapes, legal, unique, disjoint, repeats, workers, batches, lengths, oblong)
CHECKS += (reaches, mirrored, apart, cost)


def _maps(make: Make, grid: Grid) -> tuple[Tensor, Tensor]:
    """How often each patch is seen and asked for, [h w] each."""
    sampler, seen, asked = make(), torch.zeros(grid[0] * grid[1]), torch.zeros(grid[0] * grid[1])
    for step in range(_STEPS):
        mask = _draw(sampler, grid, step)
        seen += _covered(mask.context, len(seen))
        asked += _covered(mask.target, len(asked))
    return (seen / (_STEPS * ROWS)).reshape(grid), (asked / (_STEPS * ROWS)).reshape(grid)


def _covered(patches: Patches, places: int) -> Tensor:
    """In how many sequences each place stands, however often."""
    index = patches.index
    if patches.length is not None:  # padding repeats a legal index, which need not be a true one
        index = torch.where(torch.arange(index.shape[-1]) < patches.length[..., None], index, places)
    return torch.zeros(len(index), places + 1).scatter_(1, index.flatten(1), 1.0)[:, :places].sum(0)


def _rows(mask: Mask, rows: Any) -> Iterator[tuple[int, tuple[list[int], list[list[int]]]]]:
    blocks = mask.target.index.shape[1]
    context, target = dict(_true(mask.context)), dict(_true(mask.target))
    for place, row in enumerate(rows):
        yield row, (context[place], [target[place * blocks + block] for block in range(blocks)])


def _plain(mask: Mask) -> list[Any]:
    return [list(_true(mask.context)), list(_true(mask.target))]


def _same(one: Mask, other: Mask) -> bool:
    return _plain(one) == _plain(other)


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x.numpy(), y.numpy())[0])  # type: ignore[arg-type]


def _where(places: list[list[int]], grid: Grid) -> str:
    rows, columns = {row for row, _ in places}, {column for _, column in places}
    if len(rows) == 1 and len(places) == grid[1]:
        return f"row {rows.pop()} of 0 to {grid[0] - 1}"
    if len(columns) == 1 and len(places) == grid[0]:
        return f"column {columns.pop()} of 0 to {grid[1] - 1}"
    return f"the first at row {places[0][0]}, column {places[0][1]}"


def _drawn(share: Tensor) -> str:
    """A map in characters: how often each patch, in tenths; a dot is never."""
    lines = []
    for row in share.tolist():
        lines.append("                   " + " ".join("." if x == 0 else str(min(9, int(x * 10))) for x in row))
    return "\n".join(lines)
