"""How are masks drawn, and do they fit the grid? Every mask of a run comes through `draw_mask`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Grid, Mask, MaskSampler, Patches, letters
from sslzoo.errors import RunError
from sslzoo.progress import Progress
from sslzoo.rng import Rng


def draw_mask(
    sampler: MaskSampler,
    grid: Grid,
    seed: int,
    at: Progress | int,
    slots: Sequence[int],
    views: int = 1,
    *,
    chance: int | None = None,
) -> Mask:
    """Masks of these slots of a step, for each of the views; groups pass seeds of their own.

    A number is that step of a run that ends with it. `chance` is the step whose randomness is used, if not its own.

    Raises:
        RunError: the sampler returned no mask, or one that does not fit the grid.
    """
    rows = [view << 32 | slot for view in range(views) for slot in slots]
    at = Progress(at, at + 1) if isinstance(at, int) else at
    found = sampler(len(rows), grid, Rng(seed, at.step if chance is None else chance, rows, at))
    fault = _mask_fault(found, len(rows), grid)
    if fault:
        raise RunError(f"the mask sampler {type(sampler).__name__} {fault}")
    return found


def _mask_fault(found: Any, rows: int, grid: Grid) -> str:
    """What is wrong with what a mask sampler returned, or nothing.

    Asked of every batch: an index beyond the grid would crash an encoder, or be silent in one.
    """
    if not isinstance(found, Mask):
        return f"returned a {type(found).__name__}; the contract says a Mask of context [s k] and target [s m q]"
    held = (found.context.index, found.target.index, found.context.length, found.target.length)
    odd = [type(one).__name__ for one in held if not isinstance(one, Tensor | None)]
    if odd:
        return f"returned a Mask that holds a {odd[0]}; the contract says tensors"
    context, target = found.context.index, found.target.index
    if context.ndim != 2 or target.ndim != 3 or len(context) != len(target) or len(context) % rows:
        return (
            f"returned context {letters(context)} and target {letters(target)} for a batch of {rows}; the contract "
            "says context [s k] and target [s m q], s a multiple of the batch"
        )
    for name, patches in (("context", found.context), ("target", found.target)):
        fault = _index_fault(patches.index, grid[0] * grid[1]) or _length_fault(patches)
        if fault:
            return (
                f"returned a {name} {fault}; a grid of {grid[0]} x {grid[1]} has patches 0 to {grid[0] * grid[1] - 1}"
            )
    fault = "" if found.source is None else _index_fault(found.source, rows)
    return fault and f"returned a source {fault}; the batch has view rows 0 to {rows - 1}"


def _index_fault(index: Tensor, patches: int) -> str:
    if index.dtype != torch.int64:
        return f"of {str(index.dtype).removeprefix('torch.')}, where int64 is wanted"
    if not index.numel():
        return f"of no patches, {letters(index)}"
    low, high = (int(one) for one in index.aminmax())
    return "" if 0 <= low <= high < patches else f"that names {low if low < 0 else high}"


def _length_fault(patches: Patches) -> str:
    if patches.length is None:
        return ""
    low, high = (int(one) for one in patches.length.aminmax())
    return "" if 0 <= low <= high <= patches.index.shape[-1] else f"whose lengths run from {low} to {high}"
