"""How is a share of the patches hidden in pieces? Block by block, each at another spot and of another shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sslzoo import Grid, Mask, Patches, Rng, Schedule
from sslzoo.blocks import share_of
from sslzoo.contracts import true_entries
from sslzoo.keys import Aspects, FractionRange, GridCount, Share
from sslzoo_masks.visible import Hidden

FAILURES = 10  # attempts in a row that hide nothing more, before the published generators give up
ATTEMPTS = 128  # attempts in all
HALF = Schedule.parse(0.5)


class Blocks:
    """Hides many blocks, until a share of the patches is hidden; the rest is the context.

    Bao et al. 2021 (BEiT), algorithm 1, with the published generators' details: the area of a block is uniform from
    `smallest` to what is left to hide, its aspect log-uniform; it is taken if it hides something, and no more than is
    left.

    Args:
        hide: share of the patches to hide, which may change over the run, or [low, high], drawn for each image; the
            number is rounded down.
        rate: how often an image is masked at all (iBOT: 0.5); of the others everything is seen and nothing asked.
        smallest: least area drawn for a block, in patches (near the end less may be left).
        aspect: height over width of a block, [low, high].
        exact: hide just that many, the last of them at random if need be (CAE); or stop where ten attempts in a row
            did not fit, so that the number may be lower and differ from image to image (data2vec, iBOT).
    """

    def __init__(
        self,
        *,
        hide: Hidden | FractionRange = HALF,
        rate: Share = 1.0,
        smallest: GridCount = 16,
        aspect: Aspects = (0.3, 1 / 0.3),
        exact: bool = False,
    ) -> None:
        self.hide = hide if isinstance(hide, tuple) else Schedule.parse(hide)
        if exact and (rate < 1 or (isinstance(self.hide, tuple) and self.hide[0] < self.hide[1])):
            raise ValueError("exact: the number of hidden patches is one for all images, so hide is one share, rate 1")
        self.rate, self.smallest, self.exact = rate, smallest, exact
        self.logs = (math.log(aspect[0]), math.log(aspect[1]))
        self.ragged = not exact

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 1 q]. Raises ValueError if nothing would be hidden, or all."""
        low, high = self.hide if isinstance(self.hide, tuple) else (self.hide(rng.at),) * 2
        least, most = (share_of(share, grid[0] * grid[1]) for share in (low, high))
        if not least or min(grid) < 2:
            raise ValueError(f"hide: {low:g} of {grid[0]} x {grid[1]} patches hides {least} in blocks")
        if self.smallest > least:
            found = f"a block of {self.smallest} patches is more than the {least} of {grid[0]} x {grid[1]} to be hidden"
            raise ValueError(f"smallest: {found}")
        quota = torch.full((batch,), most)
        if self.rate < 1 or least < most:
            masked, share = rng.uniform(2).unbind(1)
            drawn = ((low + share * (high - low)) * grid[0] * grid[1]).long().clamp(least, most)
            quota = torch.where(masked < self.rate, drawn, 0)
        hidden = self._hidden(batch, grid, rng, quota)
        context, target = _listed(~hidden), _listed(hidden)
        length = None if target.length is None else target.length[:, None]
        return Mask(context, Patches(target.index[:, None], length))

    def _hidden(self, batch: int, grid: Grid, rng: Rng, quota: Tensor) -> Tensor:
        """Which patches are hidden: bool [batch N]. All rows make their attempts side by side."""
        hidden = torch.zeros(batch, grid[0] * grid[1], dtype=torch.bool)
        failures = torch.zeros(batch, dtype=torch.long)
        drawn = rng.uniform(ATTEMPTS, 4)
        for attempt in range(ATTEMPTS):
            left = quota - hidden.sum(1)
            active = (left > 0) & (self.exact | (failures < FAILURES))
            if not active.any():
                break
            block = self._block(drawn[:, attempt], left, grid)
            more = (block & ~hidden).sum(1)
            taken = active & (more > 0) & (more <= left)
            hidden |= block & taken[:, None]
            failures = torch.where(taken, 0, failures + 1)
        left = quota - hidden.sum(1)
        short = (left > 0) & (self.exact | (left == quota))  # a row must hide something
        if short.any():
            order = torch.where(hidden, 2.0, rng.uniform(hidden.shape[1])).argsort(1).argsort(1)
            hidden |= (order < left[:, None]) & short[:, None]
        return hidden

    def _block(self, drawn: Tensor, left: Tensor, grid: Grid) -> Tensor:
        """One block for each row, or none where it would reach across the grid: bool [batch N]."""
        area = self.smallest + drawn[:, 0] * (left - self.smallest)
        aspect = (self.logs[0] + drawn[:, 1] * (self.logs[1] - self.logs[0])).exp()
        size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).round().long()
        whole = torch.tensor(grid)
        start = (drawn[:, 2:] * (whole - size + 1)).long()
        rows, columns = (
            (torch.arange(grid[axis]) >= start[:, axis, None])
            & (torch.arange(grid[axis]) < (start + size)[:, axis, None])
            for axis in (0, 1)
        )
        fits = (size < whole).all(1)
        return (rows[:, :, None] & columns[:, None]).flatten(1) & fits[:, None]


def _listed(chosen: Tensor) -> Patches:
    """The true columns of each row, row-major, as Patches: ragged only if the rows differ."""
    length = chosen.sum(1)
    most = max(1, int(length.max()))  # where no row has any, as a batch of unmasked images, all have length 0
    index = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    if bool((length == most).all()):
        return Patches(index)
    true = true_entries(length, most)
    return Patches(torch.where(true, index, index[:, :1]), length)
