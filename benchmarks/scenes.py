"""How fast are scenes rendered, on one core? `python benchmarks/scenes.py`."""

import time

import torch

from sslzoo import catalogue

SECONDS = 3.0


def main() -> None:
    """Times rendering at several sizes."""
    torch.set_num_threads(1)
    scenes = catalogue().parts["datasets"]["scenes"].make
    for side in (64, 96, 128, 224):
        data = scenes(length=100_000, size=side)
        data.image(0)
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            done += 1
            data.image(done)
        print(f"{side:4} x {side:<4}{done / (time.perf_counter() - started):>8,.0f} images/s")


if __name__ == "__main__":
    main()
