"""Which evaluations does a run folder hold? One file each, in eval/, with all that its figures depend on."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslzoo import files
from sslzoo.errors import RunError, UserError
from sslzoo.plugins import Part, catalogue
from sslzoo.recipe import signature
from sslzoo.run import tensors

Columns = Mapping[str, Mapping[str, float]]  # figures by encoder: trained or "step N", untrained, chance
# Are no settings.
BESIDE = ("figures", "run", "step", "network", "run_seed", "versions", "time", "crc32", "summary", "overlap", "start")


@dataclass(frozen=True)
class Evaluation:
    """One file of figures of a run folder."""

    path: Path
    network: str
    step: int
    content: Mapping[str, Any]

    def holds(self, conditions: Mapping[str, Any]) -> bool:
        """Whether its figures were made with these data, view, probes and pooling."""
        return all(plain(self.content.get(key)) == plain(value) for key, value in conditions.items())

    def answers(self, asked: Mapping[str, Any]) -> bool:
        """Whether it is what a section `evaluate` asks for (`bench.asked`), whatever its data turned out to be."""
        data: Mapping[str, Any] = self.content.get("data") or {}
        sides = all(
            plain((data.get(side) or {}).get(key)) == plain(value)
            for side, spec in asked["data"].items()
            for key, value in spec.items()
        )
        rest = {key: value for key, value in asked.items() if key != "data"}
        return sides and ("augment" in self.content) == ("augment" in rest) and self.holds(rest)

    @property
    def columns(self) -> Columns:
        """Figures of the trained and the untrained encoder, and chance; nan where one was not finite."""
        return {
            name: {key: math.nan if value is None else value for key, value in column.items()}
            for name, column in self.content["figures"].items()
        }

    @property
    def time(self) -> float:
        """When it was made, in seconds since 1970."""
        made: Any = self.content.get("time")
        return made if type(made) in (int, float) else self.path.lstat().st_mtime

    @property
    def trained(self) -> str:
        """The column of the run's own encoder."""
        return "trained" if "trained" in self.content["figures"] else next(iter(self.content["figures"]))

    @property
    def summary(self) -> str:
        """What the encoder's own word for an image was, where a probe read that: class token, or mean of patches."""
        return str(self.content.get("summary") or "")

    @property
    def overlap(self) -> int:
        """How many test images were training images of the probes, too."""
        found: Any = self.content.get("overlap")
        return found if type(found) is int else 0

    def images(self, side: str) -> int | None:
        """How many images of train or test there were."""
        return ((self.content.get("data") or {}).get(side) or {}).get("images")

    def fingerprint(self, side: str) -> str:
        """Of the images of train or test; empty where it is not known."""
        return str(((self.content.get("data") or {}).get(side) or {}).get("fingerprint") or "")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything its figures depend on beside the encoder."""
        return {key: value for key, value in self.content.items() if key not in BESIDE}

    def settings_with(self, probes: Iterable[str]) -> dict[str, Any]:
        """The settings with those of some probes alone, where it has these."""
        own = self.content.get("probes") or {}
        return self.settings | {"probes": {name: own[name] for name in probes if name in own}}

    def correct(self, key: str) -> NDArray[np.generic] | None:
        """Whether each test image was told right by the run's own encoder, for "probe/task"; None if not known."""
        try:
            found = tensors.read(self.path.with_suffix(".safetensors"), "evaluation", "the file of answers")
        except RunError:
            return None
        answers = found.tensors.get(f"{self.trained}/{key}/correct")
        return None if answers is None or found.name != self.path.stem else answers.numpy()


def overlap_told(overlap: int, images: int | None) -> str:
    """That a test is none of images whose labels the probes have seen."""
    return f"{overlap} of {images} test images seem to be training images of the probes, too: their views are alike"


def plain(value: Any) -> str:
    """A value as text: equal for equal values, whatever the order of keys."""
    return json.dumps(value, sort_keys=True, default=str)


def write(folder: Path, figures: Columns, about: Mapping[str, Any], answers: Mapping[str, Tensor]) -> Path:
    """Writes figures with what they depend on to eval/STEP-NETWORK-HASH.json of a run folder, and the answers beside.

    The hash is of all that they depend on and of the columns: an evaluation with other settings gets another file, one
    with the same again the same file.

    Raises:
        RunError: they cannot be written.
    """
    short = hashlib.sha256(plain([about, list(figures)]).encode()).hexdigest()[:8]
    network = re.sub(r"[^\w.-]", "_", str(about["network"]))
    path = folder / "eval" / f"{about['step']}-{network}-{short}.json"
    clean = {
        column: {name: value if math.isfinite(value) else None for name, value in found.items()}
        for column, found in figures.items()
    }
    row = json.loads(json.dumps({"figures": clean, **about}, default=str))
    row["time"] = time.time()  # the newest counts, and files may be copied
    tensors.write(path.with_suffix(".safetensors"), answers, ("evaluation", path.stem), {})
    files.write_whole(path, json.dumps(row | {"crc32": _checksum(row)}, indent=2))
    return path


def read(folder: Path, name: str, seed: int) -> tuple[list[Evaluation], list[str]]:
    """Every evaluation of the run of this name and seed, oldest first; and a sentence for each wrong file."""
    found, faults = [], []
    for path in sorted((folder / "eval").glob("*.json")):
        content, fault = files.read_object(path, _is_evaluation)
        if content and (content.get("run", name), content.get("run_seed", seed)) == (name, seed):
            found.append(Evaluation(path, content["network"], content["step"], _filled(content)))
        elif content:
            faults.append(
                f"{path} is of another run, {content.get('run')} of seed {content.get('run_seed')}, and is left out"
            )
        else:
            faults.append(fault or f"{path} leads nowhere")
    return sorted(found, key=lambda one: one.time), faults


def _filled(content: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation with the keys that later versions added: they were what their defaults are now, as in recipes."""
    found, whole = dict(content), partial(_whole, _parts())
    if isinstance(content.get("data"), dict):
        found["data"] = {side: whole("datasets", spec) for side, spec in content["data"].items()}
    for name in ("view", "augment"):
        if name in content:
            found[name] = whole("views", content[name])
    if isinstance(content.get("probes"), dict):
        figures = [key for column in content["figures"].values() for key in column]
        found["probes"] = {
            name: {"protocol": _protocol(name, figures), **whole("probes", spec)}
            for name, spec in content["probes"].items()
            if isinstance(spec, dict)
        }
    return found


@cache
def _parts() -> Mapping[str, Mapping[str, Part]]:
    """What is installed, by family; nothing where a plugin is broken, which says nothing of what was written."""
    try:
        return catalogue().parts
    except UserError:
        return {}


def _whole(parts: Mapping[str, Mapping[str, Part]], family: str, spec: Any) -> Any:
    part = parts.get(family, {}).get(str(spec.get("use"))) if isinstance(spec, dict) else None
    if part is None:  # of a plugin that is not here
        return spec
    fields = signature.keys_of(part.make).model_fields
    return {key: signature.plain(one.default) for key, one in fields.items() if not one.is_required()} | spec


def _protocol(probe: str, figures: Sequence[str]) -> int:
    """A probe's protocol, where it was not written down yet: k-NN has told its k since its second."""
    return 2 if any(key.startswith(f"{probe}/") and key.endswith("/k") for key in figures) else 1


def chosen(evaluations: Sequence[Evaluation], step: int, asked: Mapping[str, Any] | None) -> dict[str, Evaluation]:
    """An evaluation of each network at a step: one that answers what is `asked`, if there is one (`answers`).

    Else, or of several, one that has an untrained encoder too; of those the newest.
    """
    own = lambda one: asked is not None and one.answers(asked)  # noqa: E731
    there = sorted((one for one in evaluations if one.step == step), key=lambda one: one.time)
    return {one.network: one for one in sorted(there, key=lambda one: (own(one), "untrained" in one.columns))}


_FIELDS = files.typed(network=str, step=int, figures=dict)


def _is_evaluation(row: dict[str, Any]) -> bool:
    return (
        _FIELDS(row)
        and all(row.get(key) for key in ("network", "figures"))
        and row.get("step") is not None
        and all(
            isinstance(column, dict) and all(value is None or type(value) in (int, float) for value in column.values())
            for column in row["figures"].values()
        )
        and row.get("crc32") in (None, _checksum(row))
    )


def _checksum(row: Mapping[str, Any]) -> int:
    return zlib.crc32(plain({key: value for key, value in row.items() if key != "crc32"}).encode())
