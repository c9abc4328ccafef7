"""Must features be extracted again? Not where the weights and all that they depend on are what they were.

A folder of safetensors, one a data set and network, named by a hash of weights and settings; shared by the runs of a
study, whose untrained encoders are often the same. A file that is damaged, or another's by its name, is made anew.
Oldest files go when the folder grows beyond its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sslzoo.contracts import Dataset, Features
from sslzoo.errors import RunError
from sslzoo.run import tensors
from sslzoo.run.data import read

MOST = 2**32  # bytes that the files of a folder may take together


def glimpse(data: Dataset, count: int = 16) -> str:
    """A hash of the pixels of some images from all over: other images may bear the names of those that were read."""
    hashed = hashlib.sha256()
    for i in sorted({int(i) for i in np.linspace(0, len(data) - 1, count)}):
        try:
            pixels = np.asarray(read(data, i))
        except OSError:
            pixels = np.empty(0)
        hashed.update(f"{i} {pixels.shape} ".encode() + pixels.tobytes())
    return hashed.hexdigest()[:16]


@dataclass(frozen=True)
class Kept:
    """Features in a folder, with what they depend on beside weights and data set: data, view, encoder, versions."""

    folder: Path
    depends: Mapping[str, Any]
    most: int = MOST

    def get(
        self, encoder: nn.Module, more: Sequence[Any], device: torch.device, make: Callable[[], Features]
    ) -> Features:
        """Features of an encoder: those of the folder if it has them, else made now, and kept where there is room."""
        key = self.key(encoder, more)
        path = self.folder / f"{key}.safetensors"
        try:
            found = tensors.read(path, "features", "the file of features")
            tasks = json.loads(found.about["tasks"])
            if found.name != key or "prints" not in found.tensors:
                raise RunError(f"{path} holds other features")
            path.touch()
        except (OSError, RunError):
            features = make()
            self._keep(path, features)
            return features
        take = lambda side: {k.removeprefix(side): v for k, v in found.tensors.items() if k.startswith(side)}  # noqa: E731
        known = found.tensors
        return Features(known["x"], take("labels/"), tasks, device, take("pools/"), prints=known["prints"])

    def key(self, encoder: nn.Module, more: Sequence[Any]) -> str:
        """A hash of every weight and of everything that the features depend on."""
        hashed = hashlib.sha256(json.dumps([dict(self.depends), list(more)], sort_keys=True, default=str).encode())
        for name, value in sorted(encoder.state_dict().items()):
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return hashed.hexdigest()[:32]

    def half(self, encoder: nn.Module, name: str) -> Path:
        """The file of what a long probe has done so far; it stays when the folder grows and the oldest features go."""
        return self.folder / f"{self.key(encoder, ['half', name])}.half"

    def _keep(self, path: Path, features: Features) -> None:
        """Writes features, whole or not at all; a folder that cannot be written is no fault of an evaluation."""
        content = {"x": features.x, "prints": features.prints}
        content |= {f"labels/{task}": labels for task, labels in features.labels.items()}
        content |= {f"pools/{name}": rows for name, rows in features.pools.items()}
        if sum(one.nbytes for one in content.values()) > self.most:
            return
        content = {name: one.contiguous() for name, one in content.items()}
        with suppress(OSError, RunError):
            tensors.write(path, content, ("features", path.stem), {"tasks": json.dumps(dict(features.tasks))})
            self._prune()

    def _prune(self) -> None:
        """The oldest files go, those that a kill left half written among them."""
        made = [*self.folder.glob("*.safetensors*"), *self.folder.glob("*.half.*")]
        newest = sorted(made, key=lambda one: one.stat().st_mtime, reverse=True)
        taken = 0
        for one in newest:
            taken += one.stat().st_size
            if taken > self.most:
                one.unlink(missing_ok=True)
