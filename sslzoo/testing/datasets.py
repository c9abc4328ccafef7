"""Does a data set keep its contract? Images by number, the same in every process, labels in range."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslzoo.contracts import Dataset
from sslzoo.testing.first import offers
from sslzoo.testing.report import Check, Make, Skip, Violation, check


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
    fork, some = multiprocessing.get_context("fork"), _some(data)
    wanted = [_plain(data.image(i)).sum() for i in some]
    pipes = [fork.Pipe() for _ in range(2)]

    def child(number: int) -> None:
        torch.set_num_threads(1)
        order, found = some if number else some[::-1], {}
        until = time.monotonic() + 1
        while time.monotonic() < until:  # a file that both have open is read from where the other left it
            found = dict(zip(order, (_plain(data.image(i)).sum() for i in order), strict=True))
            if [found[i] for i in some] != wanted:
                break
        pipes[number][1].send([found[i] for i in some])

    children = [fork.Process(target=child, args=(number,)) for number in range(2)]
    for one in children:
        one.start()
    found = [ours.recv() if ours.poll(30) else None for ours, _ in pipes]
    for one in children:
        one.kill()
    for one in found:
        if one != wanted:
            came = "others: is a file open that both read?" if one else "none"
            raise Violation("the same images in two workers", came, f"images {some}")


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


def _told(data):  # without types: its text runs in another process, without sslzoo
    """What must not change from process to process: the fingerprint, and some images with their labels."""
    import hashlib

    def pixels(i):
        image = data.image(i)
        image = image.numpy() if hasattr(image, "numpy") else image
        return hashlib.sha256(image.tobytes()).hexdigest()

    some = sorted({0, len(data) // 2, len(data) - 1})
    labels = [[[task, int(label)] for task, label in sorted(data.label(i).items())] for i in some if data.tasks]
    return {
        "fingerprint": getattr(data, "fingerprint", None),
        "labels": labels,
        "images": [pixels(i) for i in some],
        "len": len(data),
    }


# Standard library alone, so that it costs what the part's own module costs.
_ELSEWHERE = f"""
import importlib, importlib.util, json, pickle, sys
{inspect.getsource(_told)}
sys.path[:], name, file, make = pickle.load(sys.stdin.buffer)
try:
    importlib.import_module(name)
except ImportError:  # a plugin file, or a module that a test found
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
print("", json.dumps(_told(pickle.loads(make)())), sep=chr(10))
"""


@check(repeats, labels, same, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()` and the order of sets are others."""
    here = _told(make())
    module = sys.modules[(make.func if isinstance(make, partial) else make).__module__]
    try:
        given = pickle.dumps((sys.path, module.__name__, module.__file__, pickle.dumps(make)))
    except (pickle.PicklingError, AttributeError) as error:  # such as a class inside a function
        raise Skip(f"cannot be made in another process: {error}") from error
    seeds = {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run([sys.executable, "-c", _ELSEWHERE], input=given, capture_output=True, env=os.environ | seeds)
    if done.returncode:
        raise Violation("no error in another process", done.stderr.decode(errors="replace").strip().split("\n")[-1])
    there = json.loads(done.stdout.splitlines()[-1])
    if other := [name for name in here if here[name] != there[name]]:
        came = f"another {other[0]}: is it made by hash(), of a set, or of a folder in no order?"
        raise Violation("the same in every process", came, "opened here and in another process")


CHECKS: tuple[Check, ...] = (made, images, repeats, workers, labels, same, processes)
