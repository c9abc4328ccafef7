"""Does a data set keep its contract? Images by number, the same in every process, labels in range."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslzoo.contracts import Dataset
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import as_workers


def _plain(image: Any) -> np.ndarray:
    if isinstance(image, Tensor):
        return image.numpy()
    return np.asarray(image)


def _some(data: Any, most: int = 16) -> list[int]:
    """Numbers of some images, from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, len(data) - 1, most)})


made = offers(Dataset, lambda make: make())


@check(made)
def images(make: Make) -> str:
    """Images are RGB PIL images or uint8 tensors [3 H W]."""
    data = make()
    if len(data) < 1:
        raise Violation("at least one image", "none", "len")
    until = time.monotonic() + 1
    for number, i in enumerate(_some(data, 16) + _some(data, 1000)):
        if number >= 16 and time.monotonic() > until:
            break
        image = data.image(i)
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise Violation("mode RGB", image.mode, f"image {i}")
        elif isinstance(image, Tensor) and not image.numel():
            raise Violation("an image with pixels", f"none: {list(image.shape)}", f"image {i}")
        elif not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            came = f"{type(image).__name__} {getattr(image, 'dtype', '')} {list(getattr(image, 'shape', []))}"
            raise Violation("a PIL image or uint8 [3 H W]", came, f"image {i}")
    return f"{len(data):,} images"


@check(images)
def repeats(make: Make) -> None:
    """Image i and its label are the same each time, read in any order, and opened again."""
    data, other = make(), make()
    if len(data) != len(other):
        raise Violation(f"{len(data):,} images, as before", f"{len(other):,}", "opened again")
    for i in _some(data):
        first = _plain(data.image(i))
        if data.tasks and dict(data.label(i)) != dict(other.label(i)):
            raise Violation(f"the labels {dict(data.label(i))}", f"{dict(other.label(i))}", f"image {i}, opened again")
        data.image(0)
        for again in (data.image(i), other.image(i)):
            if not np.array_equal(first, _plain(again)):
                raise Violation("the same image", "another", f"image {i}, read again")


@check(images)
def workers(make: Make) -> None:
    """It can be read in several worker processes at once, forked after it was opened."""
    data = make()
    some = _some(data)
    wanted = [_plain(data.image(i)).sum() for i in some]

    def read(number: int) -> Any:
        order, found = some if number else some[::-1], {}
        until = time.monotonic() + 1
        while time.monotonic() < until:  # a file that both have open is read from where the other left it
            found = dict(zip(order, (_plain(data.image(i)).sum() for i in order), strict=True))
            if [found[i] for i in some] != wanted:
                break
        return [found[i] for i in some]

    if any(found != wanted for found in as_workers(read, make, 2)):
        raise Violation("the same images in two workers", "others: is a file open that both read?", f"images {some}")


@check(images)
def differs(make: Make) -> None:
    """Its images are not all one image."""
    data = make()
    first, *others = (_plain(data.image(i)) for i in _some(data))
    if others and all(np.array_equal(first, other) for other in others):
        plain = f", all of color {first.flat[0]}" if (first == first.flat[0]).all() else ""
        hint = ": were numbers from 0 to 1 made bytes?" if plain else ": does it read `i`?"
        raise Violation(
            "images that differ", f"{1 + len(others)} times one image{plain}{hint}", f"images {_some(data)}"
        )


@check(made)
def labels(make: Make) -> str:
    """Labels name every task, in the range it declares."""
    data = make()
    if not data.tasks:
        raise Skip("no tasks")
    for i in _some(data, 1000):
        label = data.label(i)
        if dict(label) != dict(data.label(i)):
            raise Violation("the same labels", "others", f"image {i}, asked again")
        if set(label) != set(data.tasks):
            raise Violation(f"labels of {sorted(data.tasks)}", str(sorted(label)), f"image {i}")
        for task, classes in data.tasks.items():
            if not isinstance(label[task], int | np.integer):
                raise Violation(
                    f"{task} a whole number", f"{label[task]!r} ({type(label[task]).__name__})", f"image {i}"
                )
            if not 0 <= int(label[task]) < classes:
                raise Violation(f"{task} from 0 to {classes - 1}", str(label[task]), f"image {i}")
    for task, names in getattr(data, "class_names", {}).items():
        if len(names) != data.tasks.get(task):
            raise Violation(f"{data.tasks.get(task)} names of classes", str(len(names)), f"class_names of {task}")
    return ", ".join(f"{task}: {classes} classes" for task, classes in data.tasks.items())


@check(made)
def same(make: Make) -> None:
    """Its fingerprint is text, and the same each time it is opened: a run resumes only with the data it began with."""
    found = [getattr(make(), "fingerprint", None) for _ in range(2)]
    if found[0] is None:
        raise Skip("no fingerprint")
    if not isinstance(found[0], str) or found[0] != found[1]:
        raise Violation("text, the same twice", f"{found[0]!r} and {found[1]!r}", "opened twice")


@check(repeats, labels, same, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and of folders are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    """What must not change from process to process: the fingerprint, names, and some images with their labels."""
    data = make()
    some = sorted({0, len(data) // 2, len(data) - 1})
    labels = {f"label of image {i}": {task: int(k) for task, k in data.label(i).items()} for i in some if data.tasks}
    images = {f"image {i}": torch.from_numpy(_plain(data.image(i)).copy()) for i in some}
    named = {task: list(names) for task, names in getattr(data, "class_names", {}).items()}
    return {"fingerprint": getattr(data, "fingerprint", None), "names": named, "len": len(data)} | labels | images


CHECKS: tuple[Check, ...] = (made, images, differs, repeats, workers, labels, same, processes)
