"""What do the published views of each method cost? Milliseconds of a core's own work an image, beside decoding it.

python benchmarks/views.py [FOLDER OR TAR OF JPEG FILES]     (drawn images of 500 x 375 pixels if left out)
"""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from sslzoo import catalogue
from sslzoo.recipe.recipe import names

METHODS = ("ijepa/vith14_in1k", "mae/vith14_in1k", "simmim/vitb16_in1k", "data2vec/vitb16_in1k", "cae/vitb16_in1k")
METHODS += ("capi/vitl14_in1k", "simclr/rn50_in1k", "byol/rn50_in1k", "dino/vits16_in1k", "ibot/vits16_in1k")
METHODS += ("msn/vits16_in1k", "lejepa/vitl14_in1k")


def encoded(source: str | None, count: int = 32) -> list[bytes]:
    """Some JPEG files: from a folder or a tar, or drawn (soft noise, so that they weigh what photographs do)."""
    if source is not None and Path(source).is_dir():
        return [path.read_bytes() for path in sorted(Path(source).rglob("*.jp*g"))[:count]]
    if source is not None:
        with tarfile.open(source) as tar:
            names = [name for name in tar.getnames() if name.lower().endswith((".jpg", ".jpeg"))][:count]
            return [file.read() for file in map(tar.extractfile, names) if file is not None]
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8))
        held = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(held, "jpeg", quality=92)
        files.append(held.getvalue())
    return files


def decoded(content: bytes) -> Image.Image:
    """An image as a data set gives it."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def cost(work: Callable[[Any], object], given: Sequence[Any], rounds: int = 3) -> float:
    """Milliseconds of processor time for one of the things given: the best of some rounds."""
    found = []
    for _ in range(rounds):
        started = time.process_time()
        for one in given:
            work(one)
        found.append((time.process_time() - started) / len(given) * 1e3)
    return min(found)


def main() -> None:
    """Times the decoding, and the views of a published recipe of every method."""
    torch.set_num_threads(1)
    files = encoded(sys.argv[1] if len(sys.argv) > 1 else None)
    images = [decoded(one) for one in files]
    print(f"{len(files)} images, the first of {images[0].width} x {images[0].height}; one core, milliseconds an image")
    print(f"{'decode':22}{cost(decoded, files):8.2f}")
    installed = catalogue()
    makers, recipes = installed.parts["views"], names(installed)
    for method in METHODS:
        total, told = 0.0, []
        for name, spec in yaml.safe_load(recipes[method].read_text())["views"].items():
            keys = {key: value for key, value in spec.items() if key not in ("use", "count", "role")}
            each = cost(makers[spec["use"]].make(**keys), images)
            total += each * spec.get("count", 1)
            told.append(f"{spec.get('count', 1)} {name} {each:.2f}")
        print(f"{method:22}{total:8.2f}   {', '.join(told)}")


if __name__ == "__main__":
    main()
