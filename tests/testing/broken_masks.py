"""Mask samplers that are wrong on purpose, each in one way; and the sound one they are made from. A plugin file, too."""

import math

import torch

from sslzoo import Mask, Patches, hookimpl
from sslzoo.blocks import draw_size, indices


class Sound:
    """Two rectangles to guess, what is left to see: a sampler that keeps its contract. The others break it."""

    ragged = False
    span = 0  # places that are never reached at the end of each axis

    def __call__(self, batch, grid, rng):
        if min(grid) < 4:
            raise ValueError(f"grid: {grid} is too small for blocks")
        size = self.size(grid, rng)
        corner = rng.uniform(2, 2)
        top = (corner[..., 0] * (grid[0] - size[0] + 1 - self.span)).long()
        left = (corner[..., 1] * (grid[1] - size[1] + 1 - self.span)).long()
        target = indices(top, left, size, grid)
        return Mask(self.context(target, grid, rng), Patches(target))

    def size(self, grid, rng):
        return draw_size(grid, (0.1, 0.2), (0.5, 2.0), rng.shared)

    def free(self, target, grid):
        return torch.ones(len(target), grid[0] * grid[1]).scatter_(1, target.flatten(1), 0).bool()

    def context(self, target, grid, rng):
        free, kept = self.free(target, grid), grid[0] * grid[1] - 2 * target.shape[-1]
        order = rng.permutation(grid[0] * grid[1])
        ranked = order.gather(1, free.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        return Patches(ranked[:, :kept])


class LastRow(Sound):
    """Never reaches the last row and column (the published sampler's first defect)."""

    span = 1

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(there)


class Shared(Sound):
    """One random number drives scale and aspect (its second)."""

    def size(self, grid, rng):
        u = torch.rand((), generator=rng.shared).item()
        area, aspect = (0.1 + 0.15 * u) * grid[0] * grid[1], 0.5 + 1.5 * u
        return max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))


class Raster(Sound):
    """Cuts contexts in raster order (its third)."""

    def context(self, target, grid, rng):
        free, kept = self.free(target, grid), (grid[0] * grid[1] - 2 * target.shape[-1]) // 2
        return Patches((~free).int().argsort(dim=1, stable=True)[:, :kept])


class Batchy(Sound):
    """Cuts contexts to the shortest of the batch (its fourth)."""

    def context(self, target, grid, rng):
        free = self.free(target, grid)
        order = rng.permutation(grid[0] * grid[1])
        ranked = order.gather(1, free.gather(1, order).int().argsort(dim=1, descending=True, stable=True))
        return Patches(ranked[:, : int(free.sum(1).min())])


class Endless(Sound):
    """Draws again without end on grids that cannot hold what it wants (its fifth)."""

    def __call__(self, batch, grid, rng):
        while grid[0] * grid[1] < 16:
            pass
        return super().__call__(batch, grid, rng)


class Global(Sound):
    """Draws from torch's global generator."""

    def size(self, grid, rng):
        return draw_size(grid, (0.1, 0.2), (0.5, 2.0), torch.default_generator)


class Forgetful(Sound):
    """Counts its calls."""

    calls = 0

    def __call__(self, batch, grid, rng):
        self.calls += 1
        mask = super().__call__(batch, grid, rng)
        return (
            mask if self.calls == 1 else Mask(Patches(mask.context.index.flip(0)), Patches(mask.target.index.flip(0)))
        )


class Overlapping(Sound):
    """Shows what must be guessed."""

    def context(self, target, grid, rng):
        return Patches(rng.permutation(grid[0] * grid[1])[:, : grid[0] * grid[1] // 2])


class Twice(Sound):
    """Names a patch twice."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(torch.cat([there, there[:, :1]], 1))


class Outside(Sound):
    """Takes rows for columns, so indices leave an oblong grid."""

    def __call__(self, batch, grid, rng):
        return super().__call__(batch, (max(grid), max(grid)), rng)


class Undeclared(Sound):
    """Contexts of several lengths, undeclared."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(there, torch.arange(len(there)) % 3 + there.shape[1] - 3)


class Slow(Sound):
    """Takes its time for each image of a large batch."""

    def context(self, target, grid, rng):
        for _ in range(len(target) if len(target) > 100 else 0):
            sum(range(200_000))
        return super().context(target, grid, rng)


class RareOutside(Sound):
    """Leaves the grid in one image of a thousand."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index.clone()
        there[rng.integers(1000)[:] == 0, -1] = grid[0] * grid[1]
        return Patches(there)


class RareOverlap(Sound):
    """Shows a patch that must be guessed, in one image of five hundred."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index.clone()
        rare = rng.integers(500) == 0
        there[rare, 0] = target[rare, 0, 0]
        return Patches(there)


class Empty(Sound):
    """Shows contexts of which some have no patch."""

    ragged = True

    def __call__(self, batch, grid, rng):
        mask = super().__call__(batch, grid, rng)
        length = (rng.uniform() > 0.01).long() * mask.context.index.shape[-1]
        return Mask(Patches(mask.context.index, length), mask.target)


class Nothing(Sound):
    """Has nothing to see."""

    def context(self, target, grid, rng):
        return Patches(super().context(target, grid, rng).index[:, :0])


class Turned(Sound):
    """Counts places column by column."""

    def __call__(self, batch, grid, rng):
        return super().__call__(batch, grid[::-1], rng)


class Drifting(Sound):
    """Slides a little with every hundred calls."""

    calls = 0

    def __call__(self, batch, grid, rng):
        self.calls += 1
        mask = super().__call__(batch, grid, rng)
        return Mask(Patches(mask.context.index.roll(self.calls // 100, 1)), mask.target)


class Crowded(Sound):
    """Cuts contexts in batches of more than thirty."""

    def context(self, target, grid, rng):
        there = super().context(target, grid, rng).index
        return Patches(there[:, : there.shape[1] - (len(there) > 30)])


class ByPosition(Sound):
    """Draws by position in the batch, the same in every step."""

    def __call__(self, batch, grid, rng):
        from sslzoo import Rng

        return super().__call__(batch, grid, Rng(1, 0, range(len(rng))))


class PythonRandom(Sound):
    """Draws from Python's random."""

    def size(self, grid, rng):
        import random

        return super().size(grid, rng) if random.random() < 2 else (1, 1)


class NumpyRandom(Sound):
    """Draws from numpy's global generator, one step in a hundred."""

    def size(self, grid, rng):
        import numpy as np

        if torch.rand((), generator=rng.shared) < 0.01:
            np.random.rand()
        return super().size(grid, rng)


class OwnRandom(Sound):
    """Draws from a generator of its own."""

    def context(self, target, grid, rng):
        import numpy as np

        there = super().context(target, grid, rng).index
        return Patches(there[:, np.random.default_rng(0 if len(there) != 16 else None).permutation(there.shape[1])])


class Elsewhere(Sound):
    """Draws otherwise in another process."""

    def context(self, target, grid, rng):
        import multiprocessing

        there = super().context(target, grid, rng).index
        return Patches(there if multiprocessing.parent_process() is None else there.flip(1))


class Unsaid:
    """Does not say whether contexts are ragged."""

    def __call__(self, batch, grid, rng):
        return Sound()(batch, grid, rng)


class Whole(Sound):
    """Returns indices that are no whole numbers."""

    def context(self, target, grid, rng):
        return Patches(super().context(target, grid, rng).index.float())


class LateOverlap(Sound):
    """Shows what must be guessed once half of the run is over."""

    def __call__(self, batch, grid, rng):
        mask = super().__call__(batch, grid, rng)
        if rng.at.step > rng.at.steps / 2:
            mask.context.index[:, 0] = mask.target.index[:, 0, 0]
        return mask


class VeryCrowded(Sound):
    """Cuts contexts in batches of more than a hundred."""

    def context(self, target, grid, rng):
        return Patches(super().context(target, grid, rng).index[:, : -2 if len(target) > 100 else None])


class HashOrder(Sound):
    """Names its blocks' shapes in the order of a set."""

    def size(self, grid, rng):
        kinds = list({f"{rows} {columns}" for rows in range(1, 4) for columns in range(1, 4)})
        rows, columns = kinds[int(torch.randint(9, (), generator=rng.shared))].split()
        return int(rows), int(columns)


class OneCorner(Sound):
    """Puts all blocks of an image where its first one is."""

    def __call__(self, batch, grid, rng):
        target = super().__call__(batch, grid, rng).target.index[:, :1].expand(-1, 2, -1).contiguous()
        return Mask(self.context(target, grid, rng), Patches(target))


class Checkers:
    """Sound: shows the black or the white squares of a board, whose neighbors are never of one color."""

    ragged = False

    def __call__(self, batch, grid, rng):
        black = ((torch.arange(grid[0])[:, None] + torch.arange(grid[1])) % 2).flatten().bool()
        first, second = black.nonzero()[:, 0], (~black).nonzero()[:, 0]
        if len(first) != len(second):
            raise ValueError("as many black squares as white ones")
        swapped = (rng.uniform() < 0.5)[:, None]
        return Mask(Patches(torch.where(swapped, first, second)), Patches(torch.where(swapped, second, first)[:, None]))


class Common:
    """Sound: one mask for all images of a step."""

    ragged = False

    def __call__(self, batch, grid, rng):
        if grid[0] * grid[1] < 16:
            raise ValueError("sixteen patches at least")
        corner = (int(torch.randint(side - 1, (1,), generator=rng.shared)) for side in grid)
        target = indices(*(torch.tensor([[one]]) for one in corner), (2, 2), grid)
        hidden = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
        hidden[target.flatten()] = True
        return Mask(
            Patches((~hidden).nonzero()[:, 0].repeat(batch, 1)), Patches(target.flatten(1)[:, None].repeat(batch, 1, 1))
        )


MASKS = {
    HashOrder: "processes",
    OneCorner: "several",
    LateOverlap: "disjoint",
    VeryCrowded: "batches",
    RareOutside: "legal",
    RareOverlap: "disjoint",
    Empty: "legal",
    Nothing: "legal",
    Turned: "upright",
    Drifting: "repeats",
    Crowded: "batches",
    ByPosition: "batches",
    PythonRandom: "chance",
    NumpyRandom: "chance",
    OwnRandom: "repeats",
    Unsaid: "made",
    Whole: "shapes",
    LastRow: "reaches",
    Shared: "apart",
    Raster: "mirrored",
    Batchy: "batches",
    Endless: "oblong",
    Global: "chance",
    Elsewhere: "workers",
    Forgetful: "repeats",
    Overlapping: "disjoint",
    Twice: "unique",
    Outside: "legal",
    Undeclared: "lengths",
    Slow: "cost",
}

SOUND = {"masks": (Sound, Checkers, Common)}


@hookimpl
def sslzoo_masks():
    return {"broken-last-row": LastRow}
