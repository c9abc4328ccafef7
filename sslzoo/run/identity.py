"""What tells a data set from another? A run goes on with the training data that it began with, and with no other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sslzoo.contracts import Dataset
from sslzoo.errors import RunError
from sslzoo.run.data import Sources, Split

MASKED_TOGETHER = "images masked together (run.batch over processes, at most run.micro)"


def identity(data: Dataset) -> dict[str, Any]:
    """What tells a data set from another, cheaply: its size, its tasks, and a hash.

    The hash is of the data set's own `fingerprint`, where it has one, and of the labels of up to 64 images. What
    decodes its files is told too, where it says so: other pixels are other data.

    Raises:
        RunError: a label is no class of its task (`misfit`).
    """
    count, tasks = len(data), {task: int(classes) for task, classes in data.tasks.items()}
    hashed = [str(getattr(data, "fingerprint", ""))]
    for i in sorted({int(i) for i in np.linspace(0, count - 1, min(count, 64))} if tasks else ()):
        label = data.label(i)
        if wrong := misfit(data, i, label):
            raise RunError(wrong)
        hashed += [f"{i} {task} {int(label[task])}" for task in tasks]
    found = {
        "images": count,
        "tasks": tasks,
        "fingerprint": hashlib.sha256("\n".join(hashed).encode()).hexdigest()[:16],
    }
    decoder = getattr(data, "decoder", None)
    return found if decoder is None else found | {"decoder": str(decoder)}


def misfit(data: Dataset, i: int, label: Mapping[str, int]) -> str:
    """What is wrong with the label of image i, in a sentence; nothing where it is a class of each task."""
    for task, classes in data.tasks.items():
        if task not in label:
            return f"image {i} has no label in the task {task}"
        if not 0 <= int(label[task]) < classes:
            return (
                f"image {i} has the label {int(label[task])} in the task {task}, which has classes 0 to {classes - 1}"
            )
    return ""


def drawn_together(sources: Sources, shares: Split) -> dict[str, int]:
    """How many images masks are drawn with, where that matters to them: a part of the training data's identity."""
    matters = any(getattr(sampler, "batchwise", False) for sampler in sources.masks.values())
    return {MASKED_TOGETHER: shares.micro} if matters else {}
