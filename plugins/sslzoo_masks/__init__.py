"""What may be seen, and what must be guessed? Simple answers: at random, a block, a quadrant, a checkerboard."""

from __future__ import annotations

import torch

from sslzoo import Grid, Mask, Patches, Rng, Schedule, hookimpl
from sslzoo.blocks import covered, draw_size, indices, share_of, unfitting
from sslzoo.keys import Aspects, Count, ShareRange
from sslzoo_masks.blocks import Blocks
from sslzoo_masks.visible import Hidden, VisibleBlock, VisibleSquares, copied

MAE = Schedule.parse(0.75)


class Random:
    """Hides a share of the patches at random; the hidden ones are one block to guess (MAE).

    Args:
        hide: share of the patches hidden, which may change over the run; the number kept is rounded down.
        cell: side in patches of the squares that are hidden or kept as one (SimMIM: 2).
        copies: masks of each view; each is a sequence of its own.
    """

    ragged = False

    def __init__(self, *, hide: Hidden = MAE, cell: Count = 1, copies: Count = 1) -> None:
        self.hide, self.cell, self.copies = Schedule.parse(hide), cell, copies

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 1 q]. Raises ValueError if nothing would be kept or hidden, or cells do not fit."""
        if grid[0] % self.cell or grid[1] % self.cell:
            raise ValueError(f"cell: squares of {self.cell} do not fill a grid of {grid[0]} x {grid[1]}")
        rows, columns = grid[0] // self.cell, grid[1] // self.cell
        hide = self.hide(rng.at)
        kept = share_of(1 - hide, rows * columns)
        if not 0 < kept < rows * columns:
            raise ValueError(
                f"hide: {hide:g} of {rows} x {columns} patches keeps {kept} and hides {rows * columns - kept}"
            )
        return copied(self.copies, batch, lambda: self._one(kept, (rows, columns), grid, rng))

    def _one(self, kept: int, cells: Grid, grid: Grid, rng: Rng) -> Mask:
        order = rng.permutation(cells[0] * cells[1])
        if self.cell > 1:
            top, left = order // cells[1] * self.cell, order % cells[1] * self.cell
            order = indices(top, left, (self.cell, self.cell), grid).flatten(1)
        kept *= self.cell**2
        return Mask(Patches(order[:, :kept]), Patches(order[:, None, kept:]))


class Block:
    """Hides one block; the rest is the context (the I-JEPA paper's ablation, table 6).

    Args:
        scale: share of the patches the block covers, [low, high]; drawn once a step.
        aspect: height over width of the block, [low, high]; drawn once a step.
    """

    ragged = False

    def __init__(self, *, scale: ShareRange = (0.6, 0.6), aspect: Aspects = (0.75, 1.5)) -> None:
        self.scale, self.aspect = scale, aspect

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 1 q]. Raises ValueError if the block may cover the whole grid."""
        if fault := unfitting(grid, self.scale, self.aspect):
            raise ValueError(fault)
        size = draw_size(grid, self.scale, self.aspect, rng.shared)
        left = grid[0] * grid[1] - size[0] * size[1]
        if not left:
            raise ValueError(
                f"scale: a block of {size[0]} x {size[1]} leaves nothing of a grid of {grid[0]} x {grid[1]}"
            )
        corner = rng.uniform(1, 2)
        top = (corner[..., 0] * (grid[0] - size[0] + 1)).long()
        across = (corner[..., 1] * (grid[1] - size[1] + 1)).long()
        hidden = covered(top, across, size, grid)
        context = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :left]
        return Mask(Patches(context), Patches(indices(top, across, size, grid)))


class Rasterized:
    """One quadrant is seen, the other three are blocks to guess (the I-JEPA paper's ablation, table 6).

    On a grid of odd height or width the middle line belongs to no quadrant.
    """

    ragged = False

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 3 k]. Raises ValueError on a grid of a single row or column."""
        size = (grid[0] // 2, grid[1] // 2)
        if not size[0] * size[1]:
            raise ValueError(f"a grid of {grid[0]} x {grid[1]} has no quadrants")
        tops = torch.tensor([0, 0, grid[0] - size[0], grid[0] - size[0]])
        lefts = torch.tensor([0, grid[1] - size[1], 0, grid[1] - size[1]])
        quadrants = indices(tops, lefts, size, grid)
        shown = rng.integers(4)
        others = (shown[:, None] + torch.arange(1, 4)) % 4
        return Mask(Patches(quadrants[shown]), Patches(quadrants[others.sort(1).values]))


class Checkerboard:
    """Shows one color of a checkerboard and asks for the other.

    Args:
        cell: side of a square, in patches.
    """

    ragged = False

    def __init__(self, *, cell: Count = 2) -> None:
        self.cell = cell

    def __call__(self, batch: int, grid: Grid, rng: Rng) -> Mask:
        """Context [s k], target [s 1 k]. Raises ValueError if a square covers the grid."""
        rows, columns = (torch.arange(n) // self.cell for n in grid)
        dark = (rows[:, None] + columns).flatten() % 2 == 0
        size = int(min(dark.sum(), (~dark).sum()))  # either color may be kept, so both have the same length
        if not size:
            raise ValueError(f"cell: a square of {self.cell} covers the grid of {grid[0]} x {grid[1]}")
        kept = dark ^ (rng.uniform() < 0.5)[:, None]  # s N
        # Where one color has more patches, chance says which stay out: cut in order, the last row would lose them.
        context, target = rng.choose(kept, size), rng.choose(~kept, size)
        return Mask(Patches(context), Patches(target[:, None]))


@hookimpl
def sslzoo_masks() -> dict[str, type]:
    """The samplers `random`, `block`, `blocks`, `visible-block`, `visible-squares`, `rasterized`, `checkerboard`."""
    hidden = {"random": Random, "block": Block, "blocks": Blocks}
    shown = {"visible-block": VisibleBlock, "visible-squares": VisibleSquares, "rasterized": Rasterized}
    return hidden | shown | {"checkerboard": Checkerboard}
