"""Where on the grid does a block lie? Geometry that samplers of masks share; vectorized over rows.

A block's scale is its share of the grid's patches; its aspect is height over width, in patches.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from sslzoo.contracts import Grid
from sslzoo.keys import Range

Size = tuple[int, int]  # rows, columns


def share_of(share: float, count: int) -> int:
    """How many of `count` a share is, rounded down: 0.2 of 100 is 20, though 1 - 0.8 is a little less than 0.2."""
    return int(share * count + 1e-9)


def size_of(grid: Grid, scale: float, aspect: float) -> Size:
    """Rows and columns of a block, rounded to patches and held within the grid."""
    area = scale * grid[0] * grid[1]
    height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return min(grid[0], max(1, round(height))), min(grid[1], max(1, round(width)))


def draw_size(grid: Grid, scale: Range, aspect: Range, generator: torch.Generator) -> Size:
    """The size of a block, its scale and its aspect drawn apart from each other."""
    first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return size_of(grid, scale[0] + first * (scale[1] - scale[0]), aspect[0] + second * (aspect[1] - aspect[0]))


def sizes(grid: Grid, scale: Range, aspect: Range, steps: int = 65) -> set[Size]:
    """The sizes that may come up, found on a fine lattice of scales and aspects."""
    lattice = [[low + (high - low) * i / (steps - 1) for i in range(steps)] for low, high in (scale, aspect)]
    return {size_of(grid, *pair) for pair in product(*lattice)}


def unfitting(grid: Grid, scale: Range, aspect: Range) -> str:
    """Why no block of these ranges is one of the grid's, or nothing: smaller than a patch, or thinner than a line."""
    patches = grid[0] * grid[1]
    if scale[1] * patches < 0.5:
        return f"scale: {scale[1]:g} of a grid of {grid[0]} x {grid[1]} is less than a patch"
    if aspect[0] > grid[0] or aspect[1] < 1 / grid[1]:
        rest = f"a grid of {grid[0]} x {grid[1]} has blocks from 1 x {grid[1]} to {grid[0]} x 1"
        return f"aspect: found {aspect[0]:g} to {aspect[1]:g} rows a column; {rest}"
    return ""


def indices(top: Tensor, left: Tensor, size: Size, grid: Grid) -> Tensor:
    """The patches of blocks, row-major: [..] and [..] -> [.. h*w]."""
    rows, columns = torch.arange(size[0])[:, None] * grid[1], torch.arange(size[1])[None]
    return (top * grid[1] + left)[..., None] + (rows + columns).flatten()


def covered(top: Tensor, left: Tensor, size: Size, grid: Grid) -> Tensor:
    """Which patches the blocks of the last dimension cover together: [.. m] and [.. m] -> bool [.. N]."""
    in_row, in_column = _along(top, size[0], grid[0]), _along(left, size[1], grid[1])  # .. m h and .. m w
    if top.shape[-1] == 1:  # nothing to sum, and twice as fast
        return (in_row[..., 0, :, None] & in_column[..., 0, None, :]).flatten(-2)
    return (in_row.float().transpose(-1, -2) @ in_column.float()).flatten(-2) > 0


def _along(start: Tensor, length: int, whole: int) -> Tensor:
    """Which rows (or columns) a block covers: [..] -> bool [.. whole]."""
    offset = torch.arange(whole) - start[..., None]
    return (offset >= 0) & (offset < length)


def chance(size: Size, grid: Grid) -> Tensor:
    """How likely a block placed anywhere alike covers each patch: [N]."""
    along = []
    for block, whole in zip(size, grid, strict=True):
        lowest = (torch.arange(whole) - block + 1).clamp(min=0)
        highest = torch.arange(whole).clamp(max=whole - block)
        along.append((highest - lowest + 1) / (whole - block + 1))
    return (along[0][:, None] * along[1]).flatten()
