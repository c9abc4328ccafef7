"""Mask `edges`: shows the rim of the grid and asks for the inside, or the other way round."""

from __future__ import annotations

import torch

from sslzoo import Mask, Patches, Rng, hookimpl
from sslzoo.keys import Rate


class Edges:
    """Rim and inside of the grid; which is shown is drawn for each image.

    Args:
        swap: share of images of which the inside is shown.
    """

    ragged = False

    def __init__(self, *, swap: Rate = 0.5) -> None:
        self.swap = swap

    def __call__(self, batch: int, grid: tuple[int, int], rng: Rng) -> Mask:
        """Context [s k], target [s 1 k]. Raises ValueError on a grid without an inside."""
        inside = torch.zeros(grid, dtype=torch.bool)
        inside[1:-1, 1:-1] = True
        size = int(min(inside.sum(), (~inside).sum()))
        if not size:
            raise ValueError(f"a grid of {grid[0]} x {grid[1]} has no inside")
        shown = inside.flatten() ^ (rng.uniform() >= self.swap)[:, None]  # s N: which set, one number an image
        return Mask(Patches(rng.choose(shown, size)), Patches(rng.choose(~shown, size)[:, None]))


@hookimpl
def sslzoo_masks() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"edges": Edges}
