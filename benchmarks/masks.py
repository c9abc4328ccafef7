"""How fast are masks drawn? Images per second on one core, beside a loop over images that follows the published rules.

python benchmarks/masks.py
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import torch

from sslzoo import Rng, catalogue

BATCH = 128


def published_loop(batch: int, grid: tuple[int, int], step: int, min_keep: int) -> None:
    """The published procedure, image by image: blocks as 2-D tensors, complements multiplied (docs/masks.md)."""
    height, width = grid
    share = random.Random(step).random()

    def size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        area = int(height * width * (scale[0] + share * (scale[1] - scale[0])))
        ratio = aspect[0] + share * (aspect[1] - aspect[0])
        return min(round(math.sqrt(area * ratio)), height - 1), min(round(math.sqrt(area / ratio)), width - 1)

    def block(h: int, w: int, allowed: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        attempt = 0
        while True:
            top = int(torch.randint(0, height - h, (1,)))
            left = int(torch.randint(0, width - w, (1,)))
            mask = torch.zeros(grid, dtype=torch.int32)
            mask[top : top + h, left : left + w] = 1
            for region in allowed[: max(0, len(allowed) - attempt // 20)]:
                mask *= region
            index = torch.nonzero(mask.flatten())
            if len(index) > min_keep:
                outside = torch.ones(grid, dtype=torch.int32)
                outside[top : top + h, left : left + w] = 0
                return index.squeeze(), outside
            attempt += 1

    target, context = size((0.15, 0.2), (0.75, 1.5)), size((0.85, 1.0), (1.0, 1.0))
    contexts, targets = [], []
    for _ in range(batch):
        blocks = [block(*target, []) for _ in range(4)]
        targets.append([index for index, _ in blocks])
        contexts.append(block(*context, [outside for _, outside in blocks])[0])
    shortest = min(len(index) for index in contexts)
    torch.stack([index[:shortest] for index in contexts])
    torch.stack([torch.stack(blocks) for blocks in targets])


def rate(draw: Callable[[int], object], seconds: float = 2.0) -> float:
    """Images per second."""
    draw(0)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        steps += 1
        draw(steps)
    return BATCH * steps / (time.perf_counter() - started)


def main() -> None:
    """Times every sampler."""
    torch.set_num_threads(1)
    samplers = catalogue().parts["masks"]
    for grid, min_keep in (((14, 14), 10), ((8, 8), 4)):
        loop = rate(lambda step, grid=grid, keep=min_keep: published_loop(BATCH, grid, step, keep))
        print(f"\ngrid {grid[0]} x {grid[1]}, batch {BATCH}, one core\n{'loop over images':20}{loop:>12,.0f} images/s")
        for name, part in samplers.items():
            sampler = part.make(min_keep=min_keep) if "multiblock" in name else part.make()
            found = rate(lambda step, s=sampler, grid=grid: s(BATCH, grid, Rng(0, step, range(BATCH))))
            print(f"{name:20}{found:>12,.0f} images/s{found / loop:>8.0f} times")


if __name__ == "__main__":
    main()
