"""Data set `example`: discs on a plain ground, drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sslzoo import hookimpl
from sslzoo.keys import Side


class Example:
    """One disc in each image; its label is its color.

    Args:
        length: images.
        size: side of an image in pixels.
        split: train or test; their images differ.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Field(ge=1)] = 1000,
        size: Side = 64,
        split: Literal["train", "test"] = "train",
    ) -> None:
        self.length, self.size, self.split = length, size, split
        self.tasks: Mapping[str, int] = {"color": 3}  # label tasks, and their number of classes

    def __len__(self) -> int:
        return self.length

    def _rng(self, i: int) -> torch.Generator:
        if not 0 <= i < self.length:
            raise IndexError(f"image {i} of {self.length}")
        return torch.Generator().manual_seed(2 * i + (self.split == "test"))

    def image(self, i: int) -> Tensor:
        """Image i, uint8 [3 H W]: a function of i alone. An OSError or ValueError says that it cannot be read."""
        row, column, radius = torch.rand(3, generator=self._rng(i)).tolist()
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        inside = (y / self.size - row) ** 2 + (x / self.size - column) ** 2 < (0.1 + 0.2 * radius) ** 2
        image = torch.full((3, self.size, self.size), 90, dtype=torch.uint8)
        image[self.label(i)["color"]][inside] = 240
        return image

    def label(self, i: int) -> Mapping[str, int]:
        """Class of image i in each task."""
        return {"color": i % 3}


@hookimpl
def sslzoo_datasets() -> dict[str, type]:
    """What this plugin offers, by recipe name."""
    return {"example": Example}
