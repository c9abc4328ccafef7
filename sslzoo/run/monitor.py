"""Is the encoder collapsing? RankMe of a fixed batch of training images, during the run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from sslzoo.contracts import Dataset, View
from sslzoo.errors import RunError
from sslzoo.run.data import first_views
from sslzoo.run.metrics import rankme
from sslzoo.run.networks import evaluated_encoder, summaries
from sslzoo.step import Method


def monitor_pixels(data: Dataset, view: View, count: int, seed: int) -> Tensor:
    """Views of the first images of the training set, always the same: [n 3 H W].

    Raises:
        RunError: none of them can be read.
    """
    pixels = first_views(data, view, count, count, seed)
    if not len(pixels):
        raise RunError(f"none of the first {count} images could be read")
    return pixels


def rank_of(method: Method, pixels: Tensor, cast: AbstractContextManager[Any]) -> float:
    """RankMe of the summaries of monitored images, from the teacher where there is one."""
    with cast:
        found = summaries(evaluated_encoder(method), pixels)
    return rankme(found).item()
