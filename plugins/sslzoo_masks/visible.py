"""What is shown, where all but a few pieces are hidden? One block, or small squares; and several masks of one view."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field

from sslzoo import Grid, Mask, Patches, Rng, Schedule
from sslzoo.blocks import covered, share_of
from sslzoo.keys import Aspects, Count, Share

Hidden = Annotated[Schedule, Field(gt=0, lt=1)]  # a share, that may change over the run
CAPI, DATA2VEC = Schedule.parse(0.65), Schedule.parse(0.8)


def copied(copies: int, batch: int, draw: Callable[[], Mask]) -> Mask:
    """Several masks of each view, drawn one after another: sequences (c b), copies outermost."""
    if copies == 1:
        return draw()
    drawn = [draw() for _ in range(copies)]
    context = torch.cat([mask.context.index for mask in drawn])
    target = torch.cat([mask.target.index for mask in drawn])
    return Mask(Patches(context), Patches(target), torch.arange(batch).repeat(copies))


class VisibleBlock:
    """Shows one block, that may run over an edge and go on at the other; some of the rest are to guess.

    CAPI's inverse block (Darcet et al. 2025, section 3): a rectangle, cut to the exact number of patches, is rolled
    along both axes.

    Args:
        hide: share of the patches hidden, which may change over the run; the number is rounded down.
        aspect: height over width of the block, [low, high], drawn on a logarithmic scale.
        ask: share of the hidden patches to guess, at random; at least one.
    """

    ragged = False

    def __init__(self, *, hide: Hidden = CAPI, aspect: Aspects = (0.5, 2.0), ask: Share = 0.05) -> None:
        self.hide, self.ask = Schedule.parse(hide), ask
        self.logs = (math.log(aspect[0]), math.log(aspect[1]))

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 1 q]. Raises ValueError if nothing would be hidden."""
        hidden, whole = _count(self.hide(rng.at), grid), torch.tensor(grid)
        shown, drawn = grid[0] * grid[1] - hidden, rng.uniform(3)
        aspect = (self.logs[0] + drawn[:, 0] * (self.logs[1] - self.logs[0])).exp()
        least = -(-shown // grid[1])  # lower blocks would be wider than the grid
        height = (shown * aspect).sqrt().ceil().long().clamp(min=least, max=grid[0])
        width = (shown / height).ceil().long()
        tall, wide = torch.arange(grid[0]) < height[:, None], torch.arange(grid[1]) < width[:, None]
        flat = (tall[:, :, None] & wide[:, None]).flatten(1)
        flat &= flat.cumsum(1) <= shown
        context = flat.nonzero()[:, 1].reshape(batch, shown)
        down, across = (drawn[:, 1:] * whole).long().unbind(1)
        rows = (context // grid[1] + down[:, None]) % grid[0]
        context = (rows * grid[1] + (context % grid[1] + across[:, None]) % grid[1]).sort(1).values
        seen = torch.zeros_like(flat).scatter(1, context, True)
        target = rng.choose(~seen, max(1, share_of(self.ask, hidden)))
        return Mask(Patches(context), Patches(target[:, None]))


class VisibleSquares:
    """Shows small squares at random until enough is shown; the rest is to guess.

    The inverse block masks of data2vec 2.0 (Baevski et al. 2022, arXiv 2212.07525, section 3): squares may overlap;
    what is shown too much is hidden again, at random, so that all sequences are equally long.

    Args:
        hide: share of the patches hidden, which may change over the run; the number is rounded down.
        side: side of a square, in patches.
        copies: masks of each view; each is a sequence of its own, and a teacher reads the view once for all of them.
    """

    ragged = False

    def __init__(self, *, hide: Hidden = DATA2VEC, side: Count = 3, copies: Count = 1) -> None:
        self.hide, self.side, self.copies = Schedule.parse(hide), side, copies

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 1 q]. Raises ValueError if nothing would be hidden."""
        hidden = _count(self.hide(rng.at), grid)
        return copied(self.copies, batch, lambda: self._one(batch, grid, rng, hidden))

    def _one(self, batch: int, grid: Grid, rng: Rng, hidden: int) -> Mask:
        whole = grid[0] * grid[1]
        shown = whole - hidden
        many = 4 * -(-shown // self.side**2)  # squares, of which as many count as are needed
        corner = (rng.uniform(many, 2) * (torch.tensor(grid) + self.side - 1)).long() - (self.side - 1)
        # Which square shows a patch first? Those up to the one with which enough is shown count.
        covers = covered(corner[..., :1], corner[..., 1:], (self.side, self.side), grid)  # [s many N]
        first = torch.where(covers, torch.arange(many, dtype=torch.int32)[:, None], many).amin(1)
        last = first.kthvalue(shown, 1, keepdim=True).values  # with this one enough is shown
        seen = (first <= last) & (first < many)
        lots = rng.uniform(whole) + seen  # those shown come first, so what is missing or too much falls at random
        order = lots.argsort(1, descending=True)
        return Mask(Patches(order[:, :shown]), Patches(order[:, None, shown:]))


def _count(hide: float, grid: Grid) -> int:
    """How many patches are hidden.

    Raises:
        ValueError: none, or all.
    """
    hidden = share_of(hide, grid[0] * grid[1])
    if not 0 < hidden < grid[0] * grid[1]:
        raise ValueError(f"hide: {hide:g} of {grid[0]} x {grid[1]} patches hides {hidden}")
    return hidden
