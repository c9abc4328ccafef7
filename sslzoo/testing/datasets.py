"""Does a data set keep its contract? Images by number, the same in every process, labels in range."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslzoo.contracts import Dataset
from sslzoo.testing.report import Check, Make, Skip, Violation, check, offers


def _plain(image: Any) -> np.ndarray:
    if isinstance(image, Tensor):
        return image.numpy()
    return np.asarray(image)


def _some(data: Any) -> list[int]:
    return sorted({0, len(data) // 2, len(data) - 1})


made = offers(Dataset, lambda make: make())


@check(made)
def images(make: Make) -> str:
    """Images are RGB PIL images or uint8 tensors [3 H W]."""
    data = make()
    if len(data) < 1:
        raise Violation("at least one image", "none", "len")
    for i in _some(data):
        image = data.image(i)
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise Violation("mode RGB", image.mode, f"image {i}")
        elif not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            came = f"{type(image).__name__} {getattr(image, 'dtype', '')} {list(getattr(image, 'shape', []))}"
            raise Violation("a PIL image or uint8 [3 H W]", came, f"image {i}")
    return f"{len(data):,} images"


@check(images)
def repeats(make: Make) -> None:
    """Image i is the same each time, read in any order."""
    data, other = make(), make()
    for i in _some(data):
        first = _plain(data.image(i))
        data.image(0)
        for again in (data.image(i), other.image(i)):
            if not np.array_equal(first, _plain(again)):
                raise Violation("the same image", "another", f"image {i}, read again")


@check(images)
def workers(make: Make) -> None:
    """It can be read in a worker process that was forked after it was opened."""
    data = make()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def child() -> None:
        torch.set_num_threads(1)
        theirs.send([_plain(data.image(i)).sum() for i in _some(data)])

    wanted = [_plain(data.image(i)).sum() for i in _some(data)]
    process = fork.Process(target=child)
    process.start()
    found = ours.recv() if ours.poll(30) else None
    process.kill()
    if found != wanted:
        raise Violation("the same images in a worker", "others" if found else "none", f"images {_some(data)}")


@check(made)
def labels(make: Make) -> str:
    """Labels name every task, in the range it declares."""
    data = make()
    if not data.tasks:
        raise Skip("no tasks")
    for i in range(min(len(data), 200)):
        told = data.label(i)
        if set(told) != set(data.tasks):
            raise Violation(f"labels of {sorted(data.tasks)}", str(sorted(told)), f"image {i}")
        for task, classes in data.tasks.items():
            if not 0 <= int(told[task]) < classes:
                raise Violation(f"{task} from 0 to {classes - 1}", str(told[task]), f"image {i}")
    return ", ".join(f"{task}: {classes} classes" for task, classes in data.tasks.items())


CHECKS: tuple[Check, ...] = (made, images, repeats, workers, labels)
