"""How does a batch reach the device? To a GPU on a stream of its own, while the steps before it are computed.

The host runs ahead of a GPU, so the copies of a step are asked for while the kernels of the last one still wait in the
computing stream; on a stream of their own they need not wait behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from sslzoo.contracts import Batch


def moved(batches: Iterable[Batch], device: torch.device) -> list[Batch]:
    """Batches on the device; from page-locked memory (`Batch.pin_memory`) nobody waits for them."""
    if device.type != "cuda":
        return [batch.to(device) for batch in batches]
    computing, aside = torch.cuda.current_stream(device), _stream(device)
    with torch.cuda.stream(aside):
        there = [batch.to(device) for batch in batches]
    computing.wait_stream(aside)

    def kept(x: Tensor) -> Tensor:
        x.record_stream(computing)  # its memory is not used again before the computing stream is done with it
        return x

    return [batch.map(kept) for batch in there]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all steps: memory is used again within a stream."""
    return torch.cuda.Stream(device)
