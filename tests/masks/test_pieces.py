"""Squares that are hidden or shown as one, a block that is shown, and several masks of one view."""

import pytest
import torch

from sslzoo import Progress, RecipeError, Rng, Schedule, catalogue
from sslzoo import make as part
from sslzoo.run.data import Micros, Order, Sources, Split, Views

GRID = (8, 10)


def draw(name, batch=6, grid=GRID, step=0, **keys):
    return catalogue().find("masks", name).make(**keys)(batch, grid, Rng(0, step, range(batch)))


def shown(row, grid=GRID):
    picture = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    picture[row] = True
    return picture.view(grid)


def test_cells_are_hidden_or_kept_as_one():
    mask = draw("random", hide=0.6, cell=2)
    assert mask.context.index.shape == (6, 4 * 8)  # 20 cells, of which 40 % are kept
    for row, asked in zip(mask.context.index, mask.target.index[:, 0], strict=True):
        cells = shown(row).view(4, 2, 5, 2).permute(0, 2, 1, 3).flatten(2)
        assert bool((cells.all(-1) | ~cells.any(-1)).all())
        assert sorted([*row.tolist(), *asked.tolist()]) == list(range(80))
    with pytest.raises(ValueError, match="squares of 3 do not fill"):
        draw("random", cell=3)


@pytest.mark.parametrize(("name", "keys"), [("random", {}), ("visible-squares", {"hide": 0.8})])
def test_copies_are_masks_of_their_own_of_the_same_views(name, keys):
    mask = draw(name, copies=3, **keys)
    assert mask.source.tolist() == [0, 1, 2, 3, 4, 5] * 3  # copies outermost
    rows = {tuple(sorted(row.tolist())) for row in mask.context.index}
    assert len(rows) == 18
    once = draw(name, copies=1, **keys)
    assert torch.equal(mask.context.index[:6], once.context.index)
    assert once.source is None


def test_what_is_shown_is_one_rectangle_rolled_over_the_edges():
    rolled = 0
    for step in range(20):
        mask = draw("visible-block", batch=8, step=step, hide=0.65, ask=0.1)
        assert mask.context.index.shape == (8, 28)
        assert mask.target.index.shape == (8, 1, 5)
        for row, asked in zip(mask.context.index, mask.target.index[:, 0], strict=True):
            picture = shown(row)
            assert not picture.view(-1)[asked].any()
            # Some roll brings it to the top left, whole rows first, the last of them perhaps cut short.
            homes = (picture.roll((-top, -left), (0, 1)) for top in range(GRID[0]) for left in range(GRID[1]))
            assert any(_rectangle(home) for home in homes)
            rolled += bool(picture[0].any() and picture[-1].any() and not picture.any(1).all())
    assert rolled > 20


def _rectangle(picture):
    width = max(1, int(picture[0].sum()))
    full, rest = divmod(int(picture.sum()), width)
    wanted = torch.zeros_like(picture)
    wanted[:full, :width] = True
    wanted[full : full + 1, :rest] = True
    return torch.equal(picture, wanted)


def test_squares_are_shown_until_the_count_is_reached():
    mask = draw("visible-squares", batch=40, hide=0.75, side=3)
    assert mask.context.index.shape == (40, 20)
    held = 0
    for row, asked in zip(mask.context.index, mask.target.index[:, 0], strict=True):
        assert sorted([*row.tolist(), *asked.tolist()]) == list(range(80))
        picture = shown(row).float()[None, None]
        # Most of what is shown has neighbours that are shown: at random a patch would have 2 of 8.
        around = torch.nn.functional.conv2d(picture, torch.ones(1, 1, 3, 3), padding=1)[picture > 0] - 1
        held += around.mean().item()
    assert held / 40 > 3


@pytest.mark.parametrize("name", ["random", "visible-block", "visible-squares"])
def test_a_share_may_change_over_the_run_as_any_schedule(name):
    sampler = catalogue().find("masks", name).make(hide=Schedule.parse({"linear": [0.25, 0.75]}))
    kept = [sampler(3, GRID, Rng(0, n, range(3), Progress(n, 10))).context.index.shape[1] for n in range(10)]
    assert kept == list(range(60, 20, -4))
    with pytest.raises(RecipeError, match=r"below 1|less than 1"):
        part(catalogue(), "masks", {"use": name, "hide": {"linear": [0.25, 1.0]}})


def test_loaders_tell_samplers_how_far_the_run_is_wherever_they_start():
    """So a run that was killed and goes on hides as many as an unbroken one."""
    masks = {"image": catalogue().find("masks", "random").make(hide=Schedule.parse({"linear": [0.25, 1 - 1 / 16]}))}
    scenes = catalogue().find("datasets", "scenes").make(length=8, size=32)
    views = {"image": Views(catalogue().find("views", "crop").make(size=32))}
    micros = Micros(Sources(scenes, views, masks), {"image": (4, 4)}, Order(8, 4, 0), Split(4, 1, 1), 0, steps=11)
    kept = [micros[n].groups["image"].mask.context.index.shape[1] for n in range(11)]
    assert kept == list(range(12, 1, -1))
