"""What do probes cost? Seconds and peak memory on drawn features, and what the size of ImageNet would take.

python benchmarks/probes.py [--rows 1280000] [--test 50000] [--width 1280] [--classes 1000] [--device cuda]

The cost of a probe grows as rows times width times classes (linear) or test images (k-NN), so the size of ImageNet
(1.28 million images of 1,280 features, 50,000 to test, 1,000 classes) is estimated as the measured cost times that
ratio. It is an estimate: how often the linear probe passes over the data depends on the features.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from sslzoo import Features, catalogue

FULL = {"rows": 1_281_167, "test": 50_000, "width": 1280, "classes": 1000}


def clouds(rows: int, width: int, classes: int, seed: int) -> Features:
    """Soft clouds around a direction for each class, with channels of unlike scales, as features of encoders have."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    y = torch.randint(classes, (rows,), generator=draw)
    x = torch.empty(rows, width)
    for part, labels in zip(x.split(65_536), y.split(65_536), strict=True):
        part.copy_(torch.randn(part.shape, generator=draw) + 0.15 * centers[labels])
    return Features(x.mul_(torch.logspace(-1, 1, width)), {"class": y}, {"class": classes})


def main() -> None:
    """Times both probes."""
    options = argparse.ArgumentParser()
    for name, value in {"rows": 20_000, "test": 5_000, "width": 384, "classes": 100}.items():
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--penalties", type=int, default=4, help="how many are tried")
    given = options.parse_args()
    device = torch.device(given.device)
    train, test = (
        Features(some.x, some.labels, some.tasks, device)
        for some in (
            clouds(given.rows, given.width, given.classes, 0),
            clouds(given.test, given.width, given.classes, 1),
        )
    )
    print(f"{given.rows:,} x {given.width}, {given.test:,} to test, {given.classes} classes, on {device}")
    full = FULL["rows"] * FULL["width"] / (given.rows * given.width)
    scale = {"knn": full * FULL["test"] / given.test, "linear": full * FULL["classes"] / given.classes}
    parts = catalogue().parts["probes"]
    penalties = (1e-5, 1e-4, 1e-3, 1e-2)[-given.penalties :]
    for name, probe in {"knn": parts["knn"].make(), "linear": parts["linear"].make(penalties=penalties)}.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        figures = probe(train, test, 0)
        took = time.perf_counter() - started
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**30
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        top1 = figures["class/top1"]
        print(
            f"{name:8}{took:9.1f} s  {memory:6.2f} GiB at most  top-1 {top1:5.1f}  "
            f"ImageNet: {took * scale[name]:,.0f} s (estimated)"
        )


if __name__ == "__main__":
    main()
