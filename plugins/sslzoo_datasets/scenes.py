"""What does a data set look like that needs no download? Scenes of simple objects, rendered when asked for.

In the manner of CLEVR (Johnson et al. 2017). Image i is a pure function of (seed, split, i).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sslzoo.keys import Free, Side
from sslzoo.rng import derive_seed
from sslzoo_datasets.rendering import FEWEST, MOST, Layout, draw, render

# Depth of the nearest object along the view, at the sextiles over 200,000 training scenes of seed 0.
DEPTHS = (6.829, 7.139, 7.404, 7.687, 8.100)


class Scenes:
    """Rendered scenes of 3 to 10 objects, with labels for count, distance, shape and color; needs no download.

    Tasks: count (8 classes, 3 to 10 objects), distance (6 equally frequent bins of the smallest depth along the view),
    shape (3) and color (8) of the nearest object.

    Args:
        split: train or test; no scene is in both.
        length: images.
        size: side of an image in pixels, or [height, width].
        seed: another seed is another data set.
        cache: keep rendered images in memory, shared by loader workers.
    """

    tasks: Mapping[str, int] = {"count": MOST - FEWEST + 1, "distance": len(DEPTHS) + 1, "shape": 3, "color": 8}

    def __init__(
        self,
        *,
        split: Literal["train", "test"] = "train",
        length: Annotated[int, Field(ge=1, le=10**9)] = 20_000,
        size: Side | tuple[Side, Side] = 64,
        seed: int = 0,
        cache: Annotated[bool, Free()] = False,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        self.split, self.length, self.seed = split, length, seed
        self._room = _room((split, seed, self.size), length) if cache else None

    def __len__(self) -> int:
        return self.length

    def image(self, i: int) -> Tensor:
        """Image i: uint8 [3 H W]."""
        room = self._room
        if room is None:
            return self._render(i)
        if not room.there[i]:
            room.pixels[i] = self._render(i)  # two workers may both do it: they write the same
            room.there[i] = True
        return room.pixels[i]

    def label(self, i: int) -> dict[str, int]:
        """Classes of image i; nothing is rendered."""
        room = self._room
        if room is None:
            return self._classes(i)
        if room.classes[i, 0] < 0:
            room.classes[i] = torch.tensor(list(self._classes(i).values()))
        return dict(zip(self.tasks, room.classes[i].tolist(), strict=True))

    def layout(self, i: int) -> Layout:
        """What stands where in image i."""
        return draw(np.random.Generator(np.random.PCG64(derive_seed(self.seed, "scenes", self.split, i))))

    def _render(self, i: int) -> Tensor:
        return torch.from_numpy(render(self.layout(i), self.size))

    def _classes(self, i: int) -> dict[str, int]:
        scene = self.layout(i)
        depth = scene.depth
        nearest = int(depth.argmin())
        bin_ = int(np.searchsorted(DEPTHS, depth[nearest]))
        shape, color = int(scene.shape[nearest]), int(scene.color[nearest])
        return {"count": len(depth) - FEWEST, "distance": bin_, "shape": shape, "color": color}


@dataclass(frozen=True)
class _Room:
    """What is known of the first n scenes of a split, in memory that loader workers share."""

    pixels: Tensor  # [n 3 H W]
    there: Tensor  # whether pixels are there: [n]
    classes: Tensor  # of the tasks, -1 where nobody asked: [n 4]

    @classmethod
    def of(cls, length: int, size: tuple[int, int]) -> _Room:
        pixels, there = torch.zeros(length, 3, *size, dtype=torch.uint8), torch.zeros(length, dtype=torch.bool)
        classes = torch.full((length, len(Scenes.tasks)), -1, dtype=torch.int8)
        return cls(pixels.share_memory_(), there.share_memory_(), classes.share_memory_())


_Key = tuple[str, int, tuple[int, int]]
_ROOMS: dict[_Key, _Room] = {}  # of this process: training, probing and the page look at the same scenes
_MOST = 2  # train and test


def _room(key: _Key, length: int) -> _Room:
    """The room of a split, seed and size; a larger one takes the place of one that is too small."""
    known = _ROOMS.pop(key, None)
    if known is None or len(known.there) < length:
        known = _Room.of(length, key[-1])
    _ROOMS[key] = known
    while len(_ROOMS) > _MOST:
        del _ROOMS[next(iter(_ROOMS))]
    return known
