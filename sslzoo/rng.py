"""Where does randomness come from? From (seed, step, sample), by hashing: nothing to store, nothing to restore.

A row's numbers depend on neither the batch it is drawn with, the worker that draws it, nor the rank: a run that was
killed, or that is split over other ranks, draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from sslzoo.progress import Progress

# SplitMix64 (Steele, Lea, Flood 2014): its increment, near 2^64 / golden ratio, and its two factors.
_INCREMENT, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 0xFFFFFFFFFFFFFFFF  # of a word


def _hash(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _absorb(state: np.ndarray, word: np.ndarray) -> np.ndarray:
    return _hash((state ^ _hash(word + np.uint64(_INCREMENT))) + np.uint64(_INCREMENT))


def _words(x: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.int64).astype(np.uint64)


def derive_seed(*words: int | str) -> int:
    """A seed of 63 bits for these words, in order: `derive_seed(seed, "views", step, sample)`."""
    state = 0
    for word in words:
        number = int.from_bytes(blake2b(word.encode(), digest_size=8).digest()) if isinstance(word, str) else word
        state = _hash_int((state ^ _hash_int(number + _INCREMENT)) + _INCREMENT)
    return state >> 1


def _hash_int(x: int) -> int:
    """The same finaliser on one of Python's integers, for which numpy is slow."""
    x &= _BITS
    x = ((x ^ (x >> 30)) * _FIRST) & _BITS
    x = ((x ^ (x >> 27)) * _SECOND) & _BITS
    return x ^ (x >> 31)


def generator(*words: int | str) -> torch.Generator:
    """A torch generator seeded with `derive_seed(*words)`."""
    return torch.Generator().manual_seed(derive_seed(*words))


def row_keys(rows: Sequence[int], *words: int | str) -> Tensor:
    """64 bits for each row under these words, int64 [rows]: what its `chances` follow from on any device."""
    start = np.full(len(rows), derive_seed(*words), np.uint64)
    return torch.from_numpy(_absorb(start, _words(rows)).view(np.int64))


def chances(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key, float32 [count rows]: the same on every device, and nobody waits."""
    x = keys + torch.arange(1, count + 1, device=keys.device)[:, None] * _signed(_INCREMENT)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)  # `_hash`, in the integers that torch has
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return _shifted(x, 40).float() * 2.0**-24


def _signed(x: int) -> int:
    return x - 2**64 if x >> 63 else x


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & (2 ** (64 - by) - 1)  # torch shifts the sign in


def seed_noise(seed: int, device: torch.device) -> None:
    """Seeds what torch draws from on the CPU and on this device.

    `torch.manual_seed` also leaves word, with the stack of its caller, for each kind of device that was not started:
    up to a hundredth of a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def seed_shared(seed: int) -> None:
    """Seeds the generators that all code of a process shares, on the CPU: torch's, random's and numpy's."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # third-party augmentations draw from it


class Rng:
    """The randomness of one batch.

    `shared` is a torch generator keyed by (seed, step) and equal on every rank: for what all images of a step have in
    common, such as block sizes. The methods draw one row per sample, keyed by (seed, step, sample): for the rest.

    Args:
        seed: the run's seed.
        step: the training step.
        rows: what identifies each row in the step: its slot in the global batch (and its view).
        at: how far the run is, for schedules; if left out, at the end of one that is just that long.
    """

    def __init__(self, seed: int, step: int, rows: Sequence[int], at: Progress | None = None) -> None:
        self.at = at or Progress(step, step + 1)
        self._words = (seed, "masks", step)
        start = np.full(len(rows), derive_seed(*self._words), np.uint64)
        self._state = _absorb(start, _words(rows))
        self._draws = 0

    @cached_property
    def shared(self) -> torch.Generator:
        """The generator of what all images of the step have in common."""
        return generator(*self._words, "shared")

    def __len__(self) -> int:
        return len(self._state)

    def _bits(self, *shape: int) -> np.ndarray:
        self._draws += 1
        rows = _absorb(self._state, _words([self._draws]))
        lanes = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64) * np.uint64(_INCREMENT)
        return _hash(rows[:, None] + lanes).reshape(len(rows), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), float64 [rows *shape]."""
        return torch.from_numpy((self._bits(*shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def integers(self, high: int | Tensor, *shape: int) -> Tensor:
        """Integers 0 .. high-1, int64 [rows *shape]; `high` is a number or a tensor that broadcasts to that."""
        return (self.uniform(*shape) * high).long()

    def choose(self, among: Tensor, many: int) -> Tensor:
        """As many true columns of each row, at random, in rising order: bool [rows N] -> int64 [rows many].

        Every row must have at least as many.
        """
        n = among.shape[1]
        column = np.arange(n, dtype=np.uint64)
        low = np.uint64((1 << max(1, (n - 1).bit_length())) - 1)  # bits that carry the column through the partition
        lots = (self._bits(n) >> np.uint64(1)) & ~low | column
        lots |= (~among.numpy()).astype(np.uint64) << np.uint64(63)  # what is false comes after all that is true
        lots.partition(many - 1, axis=1)
        chosen = (lots[:, :many] & low).astype(np.int32)
        chosen.sort(axis=1)
        return torch.from_numpy(chosen.astype(np.int64))

    def permutation(self, n: int) -> Tensor:
        """A permutation of 0 .. n-1 for each row, int64 [rows n]."""
        return torch.from_numpy(self._bits(n).argsort(1))
