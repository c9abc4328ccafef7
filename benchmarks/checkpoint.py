"""How long does a training loop stall for a checkpoint? Saved in place, and aside by a thread.

python benchmarks/checkpoint.py [GB]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from sslzoo.run import checkpoint


def main(size: float) -> None:
    """Prints the stall of both, and how long the thread went on."""
    method: nn.Module = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(round(size * 1e9 / 4 / 4096**2)))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.0)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        checkpoint.save(Path(folder), 1, method, optimizer)  # type: ignore[arg-type]
        print(f"in place: {time.perf_counter() - begin:.2f} s")
        saver = checkpoint.Saver(Path(folder), keep=1, milestone=None)
        for step, what in ((2, "first, with new room for the copies"), (3, "later")):
            begin = time.perf_counter()
            saver.save(step, method, optimizer)  # type: ignore[arg-type]
            stalled = time.perf_counter() - begin
            saver.join()
            print(f"aside, {what}: {stalled:.2f} s; written after {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
