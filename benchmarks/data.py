"""How fast do JPEG files become batches on one core, beside torchvision's ImageFolder with its usual transforms?

python benchmarks/data.py FOLDER [--side 256] [--rounds 5]      a folder of folders of JPEG files
python benchmarks/data.py --names 1281167                       the cached index of that many empty files

Random resized crops of 224 pixels, scale 0.3 to 1, flipped, stacked in batches of 50. ImageFolder ends in normalized
floats; sslzoo in bytes, which the device normalizes, so the time of doing that here is told beside it. Rounds of all
take turns, seconds are of this process's processor time; one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from sslzoo_crops import Crop
from sslzoo_datasets import pack
from sslzoo_datasets.folder import Folder
from sslzoo_datasets.packed import Shards
from torchvision import transforms as T  # noqa: N812
from torchvision.datasets import ImageFolder

from sslzoo.run.data import Micros, Order, Sources, Split, Views

BATCH = 50


def usual(root: Path, interpolation: str) -> Callable[[], None]:
    """ImageFolder, a batch after the other."""
    mode = T.InterpolationMode(interpolation)
    chain = [T.RandomResizedCrop(224, (0.3, 1.0), interpolation=mode), T.RandomHorizontalFlip(), T.ToTensor()]
    data = ImageFolder(str(root), T.Compose([*chain, T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]))

    def read() -> None:
        order = torch.randperm(len(data)).tolist()
        for start in range(0, len(data) // BATCH * BATCH, BATCH):
            torch.stack([data[i][0] for i in order[start : start + BATCH]])

    return read


def ours(data: Folder | Shards, interpolation: str, normalized: bool = False) -> Callable[[], None]:
    """The batches of a run, made in this process."""
    crop = Crop(size=224, scale=(0.3, 1.0), flip=0.5, interpolation=interpolation)  # pyright: ignore
    order = Order(len(data), BATCH, 0)
    micros = Micros(Sources(data, {"image": Views(crop)}, {}), {"image": (14, 14)}, order, Split(BATCH, 1, 1), 0)

    def read() -> None:
        for step in range(order.epoch_steps):
            batch = micros._batch(step)
            if normalized:
                batch.normalized()

    return read


def races(root: Path, side: int, rounds: int) -> None:
    """Prints images a second of each, and how many times those of ImageFolder that is."""
    with tempfile.TemporaryDirectory() as held:
        out, folder = Path(held) / "packed", Folder(root=root)
        started = time.perf_counter()
        settings = pack.Settings(side)
        rows = list(pack.pack(folder, out, settings, pack.begin(out, folder, settings), 1))
        took, size = time.perf_counter() - started, sum(row["bytes"] for row in rows)
        print(
            f"{len(folder)} images; packed to {side} pixels at {len(folder) / took:.0f} a second, {size / 1e6:.1f} MB"
        )
        packed = Shards(files=out / "*.tar")
        images = len(folder) // BATCH * BATCH
        for mode in ("bilinear", "bicubic"):
            runners = {
                "ImageFolder": usual(root, mode),
                "folder": ours(folder, mode),
                "folder, normalized here": ours(folder, mode, normalized=True),
                "packed": ours(packed, mode),
            }
            seconds: dict[str, list[float]] = {name: [] for name in runners}
            for number in range(rounds + 1):
                for name, read in runners.items():
                    torch.manual_seed(number)
                    started = time.process_time()
                    read()
                    if number:  # the first round warms up
                        seconds[name].append((time.process_time() - started) / images)
            for name, found in seconds.items():
                best, middle = (f(seconds["ImageFolder"]) / f(found) for f in (min, median))
                rate = f"{1 / min(found):7.0f} best {1 / median(found):7.0f} median images a second"
                print(f"{mode:9} {name:24} {rate}   x{best:.2f} best x{middle:.2f} median")


def index(names: int) -> None:
    """Prints the seconds of listing a folder of many files in a thousand classes, and of opening its cached index."""
    with tempfile.TemporaryDirectory() as held:
        root = Path(held) / "root"
        os.environ["XDG_CACHE_HOME"] = str(Path(held) / "cache")
        for number in range(1000):
            (root / f"n{number:08}").mkdir(parents=True)
            for image in range(number, names, 1000):
                os.mknod(root / f"n{number:08}" / f"n{number:08}_{image}.JPEG")
        for what in ("listed", "cached"):
            started = time.perf_counter()
            count = len(Folder(root=root))
            print(f"{count:,} names {what}: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Measures what the command line names."""
    known = argparse.ArgumentParser()
    known.add_argument("root", type=Path, nargs="?")
    known.add_argument("--side", type=int, default=256)
    known.add_argument("--rounds", type=int, default=5)
    known.add_argument("--names", type=int)
    given = known.parse_args()
    torch.set_num_threads(1)
    if given.root is not None:
        races(given.root, given.side, given.rounds)
    if given.names is not None:
        index(given.names)


if __name__ == "__main__":
    main()
