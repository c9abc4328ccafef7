"""How are tensors kept in a file? Whole or not at all, under a checksum, with the name of what they are.

The file is safetensors (no pickles), written as all files are (`files.whole`). A checksum over all names and values
tells damage from truth, and the name tells a file that was put in another's place.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslzoo import files
from sslzoo.errors import RunError

Name = tuple[str, str]  # a key of the file's header, and what it says: ("step", "1000")


@dataclass(frozen=True)
class Read:
    """A file whose checksum was right."""

    tensors: Mapping[str, Tensor]
    name: str
    about: Mapping[str, str]
    checksum: int


def write(path: Path, tensors: Mapping[str, Tensor], name: Name, about: Mapping[str, str]) -> None:
    """Writes tensors on the CPU, and texts about them; when this returns, they are on disk.

    Raises:
        RunError: they could not be written; what was there is untouched.
    """
    header = {**about, name[0]: name[1], "crc32": str(checksum(tensors, name, about))}
    files.make_folder(path.parent)
    try:
        with files.whole(path) as beside:
            beside.touch()
            mode = beside.stat().st_mode  # a person's; safetensors makes files for their owner's eyes alone
            save_file(dict(tensors), beside, header)
            beside.chmod(mode)
        files.flush(path.parent)
    except OSError as error:
        raise files.unwritten(path, error) from error
    except SafetensorError as error:  # a full disk, among others
        raise RunError(f"{path} could not be written: {error}") from error


def read(path: Path, key: str, what: str) -> Read:
    """Reads a file that is named under a key of its header; `what` is the kind of file, in words.

    Raises:
        RunError: it is damaged.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise RunError(f"{what} {path} is damaged: it is no file")
    try:
        tensors, about = load_file(path), dict(_metadata(path))
        name, expected = about.pop(key), int(about.pop("crc32"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise RunError(f"{what} {path} is damaged: {error}") from error
    if checksum(tensors, (key, name), about) != expected:
        raise RunError(f"{what} {path} is damaged: its checksum is wrong")
    return Read(tensors, name, about, expected)


def checksum(tensors: Mapping[str, Tensor], name: Name, about: Mapping[str, str]) -> int:
    """A number that no other name, texts, tensors or names of tensors are likely to have."""
    total = zlib.crc32(name[1].encode())
    for key in sorted(about):
        total = zlib.crc32(f"{key} {about[key]}".encode(), total)
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        total = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total) if value.numel() else total
    return total


def _metadata(path: Path) -> Mapping[str, str]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size))["__metadata__"]
