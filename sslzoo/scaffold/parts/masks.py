"""Mask sampler `example`: hides some columns of patches, asks for them, shows the rest."""

from __future__ import annotations

import torch

from sslzoo import Mask, Patches, Rng, hookimpl
from sslzoo.keys import Fraction


class Example:
    """Hides a run of columns at a random column; it may go over the right border and on at the left.

    Args:
        hide: share of the columns to hide, between 0 and 1.
    """

    ragged = False  # all contexts of a batch have one length

    def __init__(self, *, hide: Fraction = 0.5) -> None:
        self.hide = hide

    def __call__(self, batch: int, grid: tuple[int, int], rng: Rng) -> Mask:
        """Context [s k] and one target block [s 1 q]. Raises ValueError on a grid with too few columns."""
        rows, columns = grid
        hidden = round(self.hide * columns)
        if not 0 < hidden < columns:
            raise ValueError(f"hide: {self.hide} of {columns} columns hides {hidden}")
        # One number for each image, from (seed, step, sample): neither batch nor worker changes it.
        start = rng.integers(columns)
        order = (start[:, None] + torch.arange(columns)) % columns  # s columns: the hidden ones first
        index = torch.arange(rows)[:, None] * columns + order[:, None, :]  # s rows columns, row-major on the grid
        target, context = index[..., :hidden], index[..., hidden:]
        return Mask(Patches(context.flatten(1)), Patches(target.flatten(1)[:, None]))


@hookimpl
def sslzoo_masks() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
