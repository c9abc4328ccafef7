"""How does an encoder that others trained come into a run? Found in their file by the names of its weights.

Released files hold encoders under all kinds of names (`target_encoder.module.`, `teacher.backbone.`, `model.`) beside
heads, optimizers and numbers. Which part of a file is an encoder is told by whether all of the recipe's weights are
there, in their shapes; what released code calls a weight, the encoder knows (`published`).
"""

from __future__ import annotations

import hashlib
import pickle
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslzoo.errors import UserError, did_you_mean, shown
from sslzoo.run.parallel import split_as

SOME = 6  # names told of many


@dataclass(frozen=True)
class Found:
    """What a file has for an encoder under one prefix, such as `target_encoder.module`; `""` is the file itself."""

    prefix: str
    weights: Mapping[str, Tensor]  # by the encoder's own names, those of another shape too
    left: tuple[str, ...]  # what the encoder has no place for
    faults: tuple[str, ...]  # why it is not the encoder, if it is not

    def __str__(self) -> str:
        return repr(self.prefix) if self.prefix else "the file itself"


def read(file: Path) -> dict[str, Tensor]:
    """Every tensor of a file by the path of keys that leads to it, joined by dots.

    Nothing of the file is executed: a pickle that holds more than tensors, numbers and texts is refused.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if file.suffix == ".safetensors":  # of our own checkpoints, moments of the optimizer are no weights
            return {name: value for name, value in load_file(file).items() if not name.startswith("optim.")}
        with torch.serialization.safe_globals([Namespace]):  # DINO's and iBOT's files hold their options
            return dict(_flat(torch.load(file, map_location="cpu", weights_only=True), ()))
    except Exception as error:  # on bytes that are no such file, unpickling raises whatever its arithmetic does
        why = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0].strip()
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in why:
            raise UserError(
                f"{file} holds more than tensors, numbers and texts: {why[:300]}\n"
                "that would be executed, so the file is not opened; if its source is trusted, save its tensors alone "
                "with torch.save"
            ) from error
        found = f"{type(error).__name__}: {why or str(error).partition(chr(10))[0]}"
        raise UserError(
            f"{file} cannot be read as what torch.save wrote, nor is it called .safetensors ({found[:300]})"
            if file.suffix != ".safetensors"
            else f"{file} cannot be read: {found[:300]}"
        ) from error


def candidates(encoder: nn.Module, tensors: Mapping[str, Tensor], without: Sequence[str] = ()) -> list[Found]:
    """What a file's tensors have for an encoder under each prefix that holds enough; those that fit have no faults.

    Raises:
        UserError: `without` names weights that the encoder does not have.
    """
    own = encoder.state_dict()
    for name in without:
        if name not in own:
            raise UserError(f"start.without: {name}: the encoder has no such weight{did_you_mean(name, own)}")
    held = Counter(prefix for name in tensors for prefix in _prefixes(name))
    enough = [prefix for prefix, count in held.items() if count >= len(own) / 2]
    return [_under(prefix, encoder, own, tensors, set(without)) for prefix in enough]


def chosen(found: Sequence[Found], file: Path, take: str | None) -> Found:
    """The one candidate that fits and is meant.

    Raises:
        UserError: none fits, or several.
    """
    meant = found if take is None else [one for one in found if f"{one.prefix}.".startswith(f"{take}.")]
    fits = [one for one in meant if not one.faults]
    fits = [one for one in fits if not any(_repeats(one, other) for other in fits)]
    if len(fits) == 1:
        return fits[0]
    if len(fits) > 1:
        raise UserError(f"{file} holds {len(fits)} such encoders; choose one with take: {_listed(fits)}")
    if not meant:
        there = _listed([one for one in found if not one.faults]) or "none at all"
        where = "" if take is None else f" under {shown(take)}; there is: {there}"
        raise UserError(f"{file} holds no encoder of the recipe's architecture{where}")
    near = max(meant, key=lambda one: len(one.weights))
    raise UserError(f"{file} holds no encoder of the recipe's architecture; nearest is {near}:\n{_lines(near.faults)}")


def _repeats(found: Found, other: Found) -> bool:
    """Whether it is the other, under a longer prefix."""
    longer = len(found.prefix) > len(other.prefix) and found.weights.keys() == other.weights.keys()
    return longer and all(value is other.weights[name] for name, value in found.weights.items())


def put(found: Found, encoder: nn.Module) -> bool:
    """Puts weights into an encoder, in its own precision; false, and nothing, where it is of another architecture."""
    own = encoder.state_dict()
    if any(name not in own or value.shape != own[name].shape for name, value in found.weights.items()):
        return False
    for name, value in found.weights.items():
        own[name].copy_(split_as(value.to(own[name].dtype), own[name]))
    return True


def sha256(file: Path) -> str:
    """The checksum of a file; raises UserError if it cannot be read."""
    if not file.is_file():
        raise UserError(f"start.file: there is no file {file}")
    try:
        found = file.stat()
        return _sha256(file, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise UserError(f"start.file: {file} cannot be read: {error}") from error


@cache
def _sha256(file: Path, _size: int, _time: int) -> str:
    """Of gigabytes it takes seconds, and a start asks twice."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - SOME} more" if len(names) > SOME else ""
    return ", ".join(names[:SOME]) + more


def _under(
    prefix: str, encoder: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], without: set[str]
) -> Found:
    start = f"{prefix}." if prefix else ""
    given = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    try:
        named = encoder.published(given) if hasattr(encoder, "published") else given  # type: ignore[operator]
    except (ValueError, RuntimeError, IndexError) as error:  # tensors of other shapes than it thinks of
        return Found(prefix, given, (), (str(error),))
    weights = {name: value for name, value in named.items() if name in own and name not in without}
    faults = [f"{name} is missing" for name in own if name not in weights and name not in without]
    faults += [
        f"{name} is {list(value.shape)}, the recipe's {list(own[name].shape)}"
        for name, value in weights.items()
        if value.shape != own[name].shape
    ]
    left = [name for name in named if name not in weights and name not in without]
    homes = {
        name.partition(".")[0] for name in own if "." in name
    }  # a block too many is another encoder, a head is not
    faults += [f"{name} is not the recipe's" for name in left if name.partition(".")[0] in homes]
    return Found(prefix, weights, tuple(left), tuple(faults))


def _flat(tree: Any, path: tuple[str, ...]) -> Any:
    if isinstance(tree, Tensor):
        yield ".".join(path), tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, (*path, str(key)))


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:number]) for number in range(len(words))]


def _listed(found: Sequence[Found]) -> str:
    return ", ".join(map(str, found))


def _lines(faults: Sequence[str]) -> str:
    more = [f"and {len(faults) - SOME} more"] if len(faults) > SOME else []
    return "\n".join(f"    {fault}" for fault in [*faults[:SOME], *more])
