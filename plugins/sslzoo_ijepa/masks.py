"""Which blocks does I-JEPA hide? Its multi-block masks without the published sampler's defects, and with them.

Assran et al. 2023, section 3 and appendix A.1: a large context block, minus four smaller target blocks.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from sslzoo import Grid, Mask, Patches, Rng
from sslzoo.blocks import Size, chance, covered, draw_size, indices, sizes, unfitting
from sslzoo.contracts import true_entries
from sslzoo.keys import Aspects, Count, GridCount, Range, Share, ShareRange

ATTEMPTS = 8  # placements drawn for each image


class Multiblock:
    """I-JEPA's multi-block masks: scale and aspect independent, every patch reachable, no cut in raster order.

    Block sizes are drawn once a step, equal on every rank; positions for each image. With trim random, every image
    keeps equally many context patches, at random: `keep` times the number to be expected at the step's block sizes,
    which depends on neither batch nor rank. With trim none, contexts keep all they have and differ in length.

    Args:
        targets: target blocks of an image.
        target_scale: share of the patches a target block covers, [low, high].
        target_aspect: height over width of a target block, [low, high].
        context_scale: share of the patches the context block covers before targets are taken out, [low, high].
        context_aspect: height over width of the context block, [low, high].
        min_keep: context patches that an image keeps at the least.
        overlap: whether the context may overlap the targets.
        trim: random (equal lengths) or none (ragged; needs an encoder that accepts that).
        keep: share of the expected context that trim random keeps; 0.6 gives 0.28 of the image (paper: 0.25).
        multiple: trim random rounds the kept length down to a multiple of this, for compiled code that dislikes many
            shapes.
    """

    def __init__(
        self,
        *,
        targets: Count = 4,
        target_scale: ShareRange = (0.15, 0.2),
        target_aspect: Aspects = (0.75, 1.5),
        context_scale: ShareRange = (0.85, 1.0),
        context_aspect: Aspects = (1.0, 1.0),
        min_keep: GridCount = 4,
        overlap: bool = False,
        trim: Literal["random", "none"] = "random",
        keep: Share = 0.6,
        multiple: GridCount = 1,
    ) -> None:
        self.targets, self.overlap, self.trim, self.keep = targets, overlap, trim, keep
        self.target, self.context = (target_scale, target_aspect), (context_scale, context_aspect)
        self.min_keep, self.multiple = min_keep, multiple
        self.ragged = trim == "none" and not overlap
        self._checked: set[Grid] = set()

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Masks of a batch: context [s k], target [s m q].

        Raises:
            ValueError: the grid is too small for the settings; names the numbers.
        """
        self.check(grid)
        target, context = (draw_size(grid, *ranges, rng.shared) for ranges in (self.target, self.context))
        least = self._least(target, context, grid)
        tops, lefts, visible = self._place(batch, target, context, grid, rng, least)
        patches = Patches(indices(tops, lefts, target, grid))
        if self.overlap:
            return Mask(Patches(_first(visible, context[0] * context[1])), patches)
        if self.trim == "none":
            return Mask(_ragged(visible), patches)
        return Mask(Patches(rng.choose(visible, least)), patches)

    def check(self, grid: Grid) -> None:
        """Sees that every size that may come up leaves `min_keep` context patches.

        Raises:
            ValueError: it does not; names the numbers.
        """
        if grid in self._checked:
            return
        for name, ranges in (("target", self.target), ("context", self.context)):
            if fault := unfitting(grid, *ranges):
                raise ValueError(f"{name}_{fault}")
        largest = max(h * w for h, w in sizes(grid, *self.target))
        smallest = min(h * w for h, w in sizes(grid, *self.context))
        left = smallest if self.overlap else smallest - largest
        if left < self.min_keep:
            raise ValueError(
                f"min_keep: {self.min_keep} context patches are to be kept, but on a grid of {grid[0]} x {grid[1]} a "
                f"context block of {smallest} patches may keep only {max(0, left)} beside a target block of {largest}"
            )
        if self.multiple > 1 and self.trim == "random" and not self.overlap:
            pairs = itertools.product(sizes(grid, *self.target), sizes(grid, *self.context))
            shortest = min(self._least(target, context, grid) for target, context in pairs)
            if shortest < self.min_keep:
                found = f"a context rounded down to a multiple of {self.multiple} may keep {shortest} patches"
                raise ValueError(
                    f"multiple: {found} on a grid of {grid[0]} x {grid[1]}, below min_keep {self.min_keep}"
                )
        self._checked.add(grid)

    def _least(self, target: Size, context: Size, grid: Grid) -> int:
        """Context patches that every image of the step has: a function of the block sizes alone."""
        area = context[0] * context[1]
        if self.overlap:
            return area
        wanted = int(self.keep * expected_context(context, target, self.targets, grid))
        # What is left if all targets fall on one spot: always possible, so the search below always ends.
        kept = max(self.min_keep, min(wanted, area - target[0] * target[1]))
        return kept // self.multiple * self.multiple

    def _place(
        self, batch: int, target: Size, context: Size, grid: Grid, rng: Rng, least: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tops and lefts of the targets [s m], and what of the context block is left to see, bool [s N]."""
        drawn = rng.uniform(ATTEMPTS, self.targets + 1, 2)  # the last block is the context
        rows = torch.arange(batch)
        tops, lefts, visible = self._attempt(drawn[:, 0], target, context, grid)
        short = rows[visible.sum(1) < (self.min_keep if self.trim == "none" else least)]
        for attempt in range(1, ATTEMPTS + 1):
            if not len(short):
                break
            numbers = drawn[short, min(attempt, ATTEMPTS - 1)]
            if attempt == ATTEMPTS:  # the last resort: every target on the spot of the first
                numbers[:, : self.targets] = numbers[:, :1]
            tops[short], lefts[short], visible[short] = self._attempt(numbers, target, context, grid)
            short = short[visible[short].sum(1) < (self.min_keep if self.trim == "none" else least)]
        return tops, lefts, visible

    def _attempt(self, numbers: Tensor, target: Size, context: Size, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        free = torch.tensor([[grid[i] - size[i] + 1 for i in (0, 1)] for size in (target, context)])
        corner = (numbers * free[[0] * self.targets + [1]]).long()
        tops, lefts = corner[:, :-1, 0], corner[:, :-1, 1]
        visible = covered(corner[:, -1:, 0], corner[:, -1:, 1], context, grid)
        if not self.overlap:
            visible &= ~covered(tops, lefts, target, grid)
        return tops, lefts, visible


class MultiblockLegacy:
    """The published sampler with all its quirks, for comparison and parity; see docs/masks.md.

    One number drives scale and aspect; the last row and column are never reached; contexts are cut, in raster order, to
    the shortest of the batch it is called with.

    Args:
        targets: target blocks of an image.
        target_scale: share of the patches a target block covers, [low, high].
        target_aspect: height over width of a target block, [low, high].
        context_scale: share of the patches the context block covers before targets are taken out, [low, high].
        min_keep: a context or target must have more patches than this.
        overlap: whether the context may overlap the targets.
    """

    ragged = False
    batchwise = True  # the shortest context of a batch cuts all others
    tries = 20  # placements of the context block before one target is let go

    def __init__(
        self,
        *,
        targets: Count = 4,
        target_scale: ShareRange = (0.15, 0.2),
        target_aspect: Aspects = (0.75, 1.5),
        context_scale: ShareRange = (0.85, 1.0),
        min_keep: Literal[0] | GridCount = 10,
        overlap: bool = False,
    ) -> None:
        self.targets, self.min_keep, self.overlap = targets, min_keep, overlap
        self.target, self.context = (target_scale, target_aspect), (context_scale, (1.0, 1.0))

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Masks of a batch: context [s k], k the shortest of this batch; target [s m q].

        Raises:
            ValueError: blocks are not larger than min_keep, where the published sampler would loop for ever.
        """
        target, context = (self._size(grid, *ranges, rng) for ranges in (self.target, self.context))
        self._refuse(target, context, grid)
        corners = rng.uniform(self.targets, 2)
        tops = (corners[..., 0] * (grid[0] - target[0])).long()  # never the last row: the published range ends early
        lefts = (corners[..., 1] * (grid[1] - target[1])).long()
        visible = self._contexts(batch, tops, lefts, target, context, grid, rng)
        shortest = int(visible.sum(1).min())
        return Mask(Patches(_first(visible, shortest)), Patches(indices(tops, lefts, target, grid)))

    def _size(self, grid: Grid, scale: Range, aspect: Range, rng: Rng) -> Size:
        share = torch.rand((), generator=rng.shared, dtype=torch.float64).item()  # one number for both
        area = int(grid[0] * grid[1] * (scale[0] + share * (scale[1] - scale[0])))
        ratio = aspect[0] + share * (aspect[1] - aspect[0])
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(height, grid[0] - 1), min(width, grid[1] - 1)

    def _refuse(self, target: Size, context: Size, grid: Grid) -> None:
        for name, size in (("target", target), ("context", context)):
            if size[0] * size[1] <= self.min_keep:
                raise ValueError(
                    f"min_keep: more than {self.min_keep} patches are wanted, but on a grid of {grid[0]} x {grid[1]} a "
                    f"{name} block may have {size[0]} x {size[1]}; the published sampler would search for ever"
                )

    def _contexts(
        self, batch: int, tops: Tensor, lefts: Tensor, target: Size, context: Size, grid: Grid, rng: Rng
    ) -> Tensor:
        drawn = rng.uniform((self.targets + 1) * self.tries, 2)
        span = torch.tensor([grid[0] - context[0], grid[1] - context[1]])
        corner = (drawn * span).long()
        visible = torch.zeros(batch, grid[0] * grid[1], dtype=torch.bool)
        left = torch.arange(batch)
        for attempt in range(drawn.shape[1]):
            heeded = 0 if self.overlap else self.targets - attempt // self.tries
            seen = covered(corner[left, attempt, :1], corner[left, attempt, 1:], context, grid)
            if heeded:
                seen &= ~covered(tops[left, :heeded], lefts[left, :heeded], target, grid)
            visible[left] = seen
            left = left[seen.sum(1) <= self.min_keep]
            if not len(left):
                break
        return visible


@lru_cache(maxsize=4096)
def expected_context(context: Size, target: Size, targets: int, grid: Grid) -> float:
    """Patches of the context block that are left to see, in the mean over all positions of the blocks."""
    return (chance(context, grid) * (1 - chance(target, grid)) ** targets).sum().item()


def _first(visible: Tensor, length: int) -> Tensor:
    """The first visible patches of each row, row-major: bool [s N] -> [s length]; past a row's last, any patch."""
    index, count = visible.nonzero()[:, 1], visible.sum(1)
    start = count.cumsum(0) - count
    return index[(start[:, None] + torch.arange(length)).clamp(max=len(index) - 1)]


def _ragged(visible: Tensor) -> Patches:
    length = visible.sum(1)
    index = _first(visible, int(length.max()))
    true = true_entries(length, index.shape[1])
    return Patches(torch.where(true, index, index[:, :1]), length)
