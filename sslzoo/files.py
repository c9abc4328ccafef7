"""How are files written and read? Whole or not at all; and what is torn is told by name.

A reader gets what can be read and a sentence on what cannot, so that no damaged file keeps a run from going on.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from sslzoo.errors import RunError

Fits = Callable[[dict[str, Any]], bool]
_BESIDE = re.compile(r"[\w.+-]+\.(json|jsonl|yaml|txt|tar|safetensors)\.\d+\.writing")  # what `whole` writes first


@contextmanager
def whole(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Where to write a file that takes the place of `path` when the block ends.

    A kill or an error leaves what was there. What is `lasting` is on disk when the block is left.

    Raises:
        RunError: it could not be written; says why.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.writing")
    try:
        try:
            yield beside
            if lasting:
                flush(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise unwritten(path, error) from error


def write_whole(path: Path, text: str, *, lasting: bool = True) -> None:
    """Replaces a text file at once, as `whole`; leaves it alone if it already says this."""
    content = text.encode(errors="backslashreplace")  # a path may hold bytes that are no UTF-8
    if not _holds(path, content):
        with whole(path, lasting=lasting) as beside:
            beside.write_bytes(content)


def make_folder(path: Path) -> None:
    """Makes a folder with all that leads to it; raises RunError if that cannot be, as where a file has its name."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(path, error) from error


def refuse_unwritable(folder: Path) -> None:
    """Makes a folder and sees that it takes files, before the work whose result goes there; raises RunError if not."""
    make_folder(folder)
    try:
        TemporaryFile(dir=folder).close()  # has no name where the file system can do that
    except OSError as error:
        raise unwritten(folder, error) from error


def remove_torn(folder: Path) -> None:
    """Removes what a kill left of `whole`; everything else stays."""
    for path in folder.glob("*.writing"):
        if _BESIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def written(row: Mapping[str, Any], indent: int | None = None) -> str:
    """An object as JSON; numbers that JSON lacks (nan, inf) become null."""
    clean = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}
    return json.dumps(clean, indent=indent)


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds a line of JSON for each row, after ending a line that a kill tore.

    Raises:
        RunError: it could not be written; says why.
    """
    content = "".join(written(row) + "\n" for row in rows).encode()
    try:
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                content = content if file.read(1) == b"\n" else b"\n" + content
            file.write(content)
    except OSError as error:
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError) -> RunError:
    """How a file that cannot be written is told."""
    return RunError(f"{path} could not be written: {error.strerror or error}")


def typed(**kinds: type | tuple[type, ...]) -> Fits:
    """Whether the keys of an object are of these types, where they stand and are not null; true is no number."""

    def fits(value: object, kind: type | tuple[type, ...]) -> bool:
        return value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))

    return lambda row: all(fits(row.get(key), kind) for key, kind in kinds.items())


def read_object(path: Path, fits: Fits = lambda _row: True) -> tuple[dict[str, Any], str]:
    """A JSON object, empty where there is none; and what is wrong with the file, or nothing."""
    text, fault = read_text(path)
    if fault or text is None:
        return {}, fault
    if not text.strip():
        return {}, f"{path} is damaged: it is empty"
    row = _object(text, fits)
    return ({}, f"{path} is damaged: it does not hold what sslzoo writes there") if row is None else (row, "")


def read_rows(path: Path, fits: Fits = lambda _row: True) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects of a file, one a line, without lines that are none; and what is wrong with it, or nothing."""
    text, fault = read_text(path)
    lines = (text or "").splitlines()
    found = [(number, _object(line, fits)) for number, line in enumerate(lines, 1) if line.strip()]
    if text is not None and not found:
        return [], f"{path} is damaged: it is empty"
    bad = [number for number, row in found if row is None]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        fault = f"{path} is damaged: line {bad[0]}{more} cannot be read, and is left out"
    return [row for _, row in found if row is not None], fault


def read_bytes(path: Path, start: int = 0) -> bytes:
    """The bytes of a file from one on; none where there is no such file, or it cannot be read."""
    try:
        with _opened(path) as file:
            file.seek(start)
            return file.read()
    except OSError:
        return b""


def read_text(path: Path) -> tuple[str | None, str]:
    """The text of a file, or None where there is none; and what is wrong with it, or nothing."""
    try:
        with _opened(path) as file:
            return file.read().decode(errors="replace"), ""
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{path} cannot be read: {error.strerror or error}"


def _opened(path: Path) -> BinaryIO:
    """A plain file to read; what is none, such as a pipe that nobody writes to, would be waited for."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(number, "rb")


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.is_file() and path.read_bytes() == content
    except OSError as error:
        raise unwritten(path, error) from error


def flush(path: Path) -> None:
    """Sees that a file, or the names in a folder, are on disk; raises OSError if they cannot be."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Not every file system has this for folders (CIFS, some of FUSE); what was written there is no less good.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)):
            raise
    finally:
        os.close(handle)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _object(text: str, fits: Fits) -> dict[str, Any] | None:
    try:
        row = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and fits(row) else None
