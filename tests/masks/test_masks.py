"""Masks: legal, independent of the batch, even where they should be; and the published sampler's defects, shown."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslzoo import Rng, catalogue
from sslzoo.blocks import chance, covered, draw_size, indices, size_of, sizes

PARTS = catalogue().parts["masks"]
GRIDS = [(14, 14), (8, 8), (16, 16), (28, 28), (6, 20), (11, 7)]


def make(name, **keys):
    if "multiblock" in name:
        keys = {"min_keep": 4} | keys
    return PARTS[name].make(**keys)


def draw(name, batch, grid, step=0, rows=None, **keys):
    return make(name, **keys)(batch, grid, Rng(0, step, rows if rows is not None else range(batch)))


def seen(patches, places):
    """Bool [s N] of true entries only, by a loop over rows."""
    found = torch.zeros(len(patches.index), places, dtype=torch.bool)
    rows = patches.index.flatten(1) if patches.length is None else None
    for row in range(len(found)):
        entries = rows[row] if rows is not None else patches.index[row, : patches.length[row]]
        found[row, entries] = True
    return found


def true(patches):
    """The patches of each row or block, without what fills short ones up."""
    rows = patches.index.flatten(0, -2).tolist()
    lengths = [len(row) for row in rows] if patches.length is None else patches.length.flatten().tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", sorted(PARTS))
def test_masks_are_legal(name, grid):
    for step in range(5):
        mask = draw(name, 16, grid, step)
        context, target = mask.context.index, mask.target.index
        places = grid[0] * grid[1]
        assert context.min() >= 0
        assert context.max() < places
        assert target.min() >= 0
        assert target.max() < places
        assert all(len(set(row)) == len(row) for row in [*true(mask.context), *true(mask.target)])
        assert not (seen(mask.context, places) & seen(mask.target, places)).any()


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"multiblock-legacy"}))
def test_a_mask_depends_on_neither_batch_nor_neighbours(name):
    whole = draw(name, 64, (14, 14), 3)
    for rows in ([17], [5, 17, 40]):
        some = draw(name, len(rows), (14, 14), 3, rows)
        assert true(some.context) == [true(whole.context)[row] for row in rows]
        blocks = whole.target.index.shape[1]
        assert true(some.target) == [true(whole.target)[row * blocks + m] for row in rows for m in range(blocks)]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_masks_repeat_and_change_with_the_step(name):
    one, again, later = (draw(name, 8, (14, 14), step) for step in (1, 1, 2))
    assert torch.equal(one.context.index, again.context.index)
    assert one.context.index.shape != later.context.index.shape or not torch.equal(
        one.context.index, later.context.index
    )


def test_blocks_are_what_they_say_by_a_slow_loop():
    grid = (9, 13)
    tops, lefts, size = torch.tensor([[0, 5]]), torch.tensor([[10, 2]]), (4, 3)
    slow = [[(top + y) * 13 + left + x for y in range(4) for x in range(3)] for top, left in ((0, 10), (5, 2))]
    assert indices(tops, lefts, size, grid)[0].tolist() == slow
    assert covered(tops, lefts, size, grid)[0].nonzero()[:, 0].tolist() == sorted(slow[0] + slow[1])


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_the_chance_of_cover_is_that_of_all_places_counted(height, width, data):
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    count, total = torch.zeros(height * width), 0
    for top in range(height - size[0] + 1):
        for left in range(width - size[1] + 1):
            count[indices(torch.tensor(top), torch.tensor(left), size, (height, width))] += 1
            total += 1
    assert torch.allclose(chance(size, (height, width)), count / total, atol=1e-6)


def test_scale_and_aspect_are_independent():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_size((200, 200), (0.1, 0.4), (0.5, 2.0), generator) for _ in range(2000)]
    scale = torch.tensor([h * w / 40_000 for h, w in drawn])
    aspect = torch.tensor([h / w for h, w in drawn])
    assert torch.corrcoef(torch.stack([scale, aspect]))[0, 1].abs() < 5 / 2000**0.5
    assert scale.min() < 0.11
    assert scale.max() > 0.39
    assert aspect.min() < 0.53
    assert aspect.max() > 1.95


def test_every_size_that_comes_up_was_foreseen():
    generator = torch.Generator().manual_seed(1)
    for grid in GRIDS:
        foreseen = sizes(grid, (0.15, 0.2), (0.75, 1.5))
        assert {draw_size(grid, (0.15, 0.2), (0.75, 1.5), generator) for _ in range(500)} <= foreseen
    assert size_of((14, 14), 1.0, 1.0) == (14, 14)


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (7, 12)], ids=str)
def test_targets_lie_anywhere_alike(grid):
    """Counts of top-left corners against the uniform distribution, for each block size that comes up."""
    corners = {}
    for step in range(150):
        index = draw("multiblock", 64, grid, step).target.index
        q = index.shape[2]
        width = int((index[0, 0] // grid[1] == index[0, 0, 0] // grid[1]).sum())
        corners.setdefault((q // width, width), []).append(index[..., 0].flatten())
    for size, found in corners.items():
        found = torch.cat(found)
        if len(found) < 4000:
            continue
        top, left = found // grid[1], found % grid[1]
        cells = (grid[0] - size[0] + 1) * (grid[1] - size[1] + 1)
        count = torch.bincount(top * (grid[1] - size[1] + 1) + left, minlength=cells).double()
        assert len(count) == cells
        chi = ((count - len(found) / cells) ** 2 / (len(found) / cells)).sum()
        assert chi < cells - 1 + 6 * (2 * (cells - 1)) ** 0.5


def cover(name, grid=(14, 14), steps=80, **keys):
    context, target = torch.zeros(grid[0] * grid[1]), torch.zeros(grid[0] * grid[1])
    for step in range(steps):
        mask = draw(name, 64, grid, step, **keys)
        context += torch.zeros(64, len(context)).scatter_(1, mask.context.index, 1.0).mean(0)
        target += torch.zeros(64, len(target)).scatter_(1, mask.target.index.flatten(1), 1.0).mean(0)
    return (context / steps).reshape(grid), (target / steps).reshape(grid)


def test_the_corrected_sampler_reaches_every_patch_and_has_no_up_or_down():
    context, target = cover("multiblock", trim="random")
    assert context.min() > 0.02
    assert target.min() > 0.005
    # Flips of the grid must not matter: the four corners, edges and halves look alike.
    assert (context - context.flip(0)).abs().max() < 0.05
    assert (context - context.flip(1)).abs().max() < 0.05
    assert (target - target.flip(0)).abs().max() < 0.05


def test_the_published_sampler_misses_the_last_row_and_column_and_loses_the_bottom():
    context, target = cover("multiblock-legacy", min_keep=10)
    assert context[-1].max() == context[:, -1].max() == 0
    assert target[-1].max() == target[:, -1].max() == 0
    assert context[-3].mean() < 0.2 * context[0].mean()


def test_the_published_context_depends_on_the_batch_and_ours_does_not():
    def mean(name, batch):
        return sum(draw(name, batch, (14, 14), step).context.index.shape[1] for step in range(60)) / 60

    assert mean("multiblock-legacy", 128) < 0.75 * mean("multiblock-legacy", 4)
    assert mean("multiblock", 128) == mean("multiblock", 4)


def test_drawing_again_hardly_bends_where_targets_fall():
    """Contexts that are short draw their places again; how far that shifts coverage, against chance alone."""
    _, bent = cover("multiblock", steps=200)
    _, free = cover("multiblock", steps=200, overlap=True)  # with overlap nothing is drawn again
    assert (bent - free).abs().max() < 0.04


def test_every_context_of_a_step_is_as_long_as_the_closed_form_says():
    sampler, grid = make("multiblock", keep=0.6), (14, 14)
    for step in range(30):
        rng = Rng(0, step, range(32))
        generator = Rng(0, step, range(32)).shared
        target, context = (draw_size(grid, *ranges, generator) for ranges in (sampler.target, sampler.context))
        expected = (chance(context, grid) * (1 - chance(target, grid)) ** 4).sum()
        floor = context[0] * context[1] - target[0] * target[1]
        assert sampler(32, grid, rng).context.index.shape[1] == max(4, min(int(0.6 * expected), floor))


def test_ragged_contexts_hold_all_that_is_left():
    mask = draw("multiblock", 32, (14, 14), trim="none")
    assert make("multiblock", trim="none").ragged
    assert not make("multiblock").ragged
    assert mask.context.length.unique().numel() > 3
    left = ~seen(mask.target, 196)
    context = seen(mask.context, 196)
    assert (context <= left).all()
    assert (context.sum(1) == mask.context.length).all()


def test_a_context_may_be_the_whole_grid():
    mask = draw("multiblock", 4, (8, 8), context_scale=(1.0, 1.0), overlap=True)
    assert mask.context.index.shape[1] == 64


def test_lengths_may_be_rounded_for_compiled_code():
    for keys in ({}, {"targets": 1, "keep": 1.0}):  # of one target, some block sizes leave less than the mean
        lengths = {
            draw("multiblock", 8, (14, 14), step, multiple=8, **keys).context.index.shape[1] for step in range(10)
        }
        assert {length % 8 for length in lengths} == {0}


@pytest.mark.parametrize(
    ("name", "keys", "grid", "says"),
    [
        ("multiblock", {"min_keep": 140}, (14, 14), r"min_keep: 140 context patches.*14 x 14.*169.*"),
        ("multiblock", {"target_scale": (0.9, 0.95), "min_keep": 10}, (8, 8), "min_keep: 10"),
        ("multiblock-legacy", {"min_keep": 10}, (8, 8), "3 x 3; the published sampler would search for ever"),
        ("random", {"hide": 0.999}, (4, 4), "keeps 0"),
        ("block", {"scale": (1.0, 1.0), "aspect": (1.0, 1.0)}, (4, 4), "leaves nothing"),
        ("checkerboard", {"cell": 9}, (4, 4), "covers the grid"),
        ("rasterized", {}, (1, 8), "no quadrants"),
        ("multiblock", {"target_aspect": (20.0, 100.0)}, (8, 8), "target_aspect: found 20 to 100 rows a column"),
        ("multiblock", {"target_aspect": (0.01, 0.05)}, (8, 8), "blocks from 1 x 8 to 8 x 1"),
        ("multiblock", {"target_scale": (1e-9, 1e-3)}, (8, 8), "target_scale: 0.001 of a grid .* less than a patch"),
        ("multiblock", {"multiple": 1000}, (8, 8), "multiple of 1000 may keep 0 patches on .* below min_keep 4"),
        ("multiblock", {"multiple": 8, "min_keep": 70}, (14, 14), "multiple of 8 may keep 64 patches .* min_keep 70"),
        ("blocks", {"hide": 0.4, "smallest": 200}, (14, 14), "smallest: a block of 200 .* the 78 of 14 x 14"),
        ("blocks", {"hide": (0.1, 0.5), "smallest": 20}, (14, 14), "a block of 20 patches is more than the 19"),
        ("block", {"aspect": (20.0, 30.0)}, (8, 8), "aspect: found 20 to 30"),
    ],
)
def test_what_a_grid_cannot_hold_is_refused_with_its_numbers(name, keys, grid, says):
    def some_steps():
        return [draw(name, 4, grid, step, **keys) for step in range(20)]

    with pytest.raises(ValueError, match=says):
        some_steps()


@given(st.integers(3, 18), st.integers(3, 18), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_any_grid_gives_a_legal_mask_or_a_clear_refusal(height, width, targets, step):
    sampler = make("multiblock", targets=targets, min_keep=2)
    try:
        sampler.check((height, width))
    except ValueError as error:
        assert "min_keep" in str(error)  # noqa: PT017 - refusal is one of two right answers
        return
    mask = sampler(5, (height, width), Rng(1, step, range(5)))
    assert mask.context.index.shape[1] >= 2
    assert not (seen(mask.context, height * width) & seen(mask.target, height * width)).any()


def test_random_keeps_what_mae_keeps():
    mask = draw("random", 3, (14, 14), hide=0.75)
    assert mask.context.index.shape == (3, 49)
    assert mask.target.index.shape == (3, 1, 147)


def test_no_patch_is_lost_to_rounding():
    """1 - 0.8 is a little less than 0.2, and 0.29 of 100 a little less than 29."""
    assert draw("random", 3, (10, 10), hide=0.8).context.index.shape == (3, 20)
    assert draw("visible-block", 3, (10, 10), hide=0.5, ask=0.58).target.index.shape == (3, 1, 29)
    assert draw("blocks", 3, (10, 10), hide=0.29, exact=True).target.index.shape == (3, 1, 29)


def test_rasterized_shows_each_quadrant_as_often():
    mask = draw("rasterized", 2000, (14, 14))
    assert mask.target.index.shape == (2000, 3, 49)
    first = mask.context.index[:, 0]
    counts = torch.stack([(first == corner).sum() for corner in (0, 7, 98, 105)])
    assert counts.sum() == 2000
    assert (counts - 500).abs().max() < 100
