"""How are images found in a folder, quickly and never out of date?"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from PIL import Image

from sslzoo import RunError
from sslzoo.files import write_whole
from sslzoo.keys import Free
from sslzoo_datasets.images import DECODER, ENDINGS, digest, read


class Folder:
    """Image folders, root/class/**/image.jpg; without classes, images lie in root itself. The index is cached.

    Task: class, where at least two folders hold images and none lies in root itself; classes are numbered in
    alphabetical order. Files and folders whose names begin with a dot, and __MACOSX, are left out.

    Args:
        root: the folder.
    """

    decoder = DECODER

    def __init__(self, *, root: Annotated[Path, Free()]) -> None:
        if not root.is_dir():
            raise ValueError(f"root: {root} is not a folder")
        self.root = root
        self.index = index_of(root)
        if not self.index.files:
            raise ValueError(f"root: no images in {root} (endings {', '.join(ENDINGS)})")
        named = {name.split("/", 1)[0] for name in self.index.files if "/" in name}
        flat = any("/" not in name for name in self.index.files)
        self.classes = () if flat else tuple(sorted(named))
        self._number = {name: number for number, name in enumerate(self.classes)}
        self.tasks: Mapping[str, int] = {"class": len(self.classes)} if len(self.classes) > 1 else {}
        self.class_names: Mapping[str, Sequence[str]] = {"class": self.classes} if self.tasks else {}

    def __len__(self) -> int:
        return len(self.index.files)

    @property
    def fingerprint(self) -> str:
        """Of the files' names below root, in order."""
        return digest(self.index.files)

    def image(self, i: int) -> Image.Image:
        """Image i as RGB; raises OSError if it cannot be read."""
        return read((self.root / self.index.files[i]).read_bytes())

    def label(self, i: int) -> Mapping[str, int]:
        """The class of image i."""
        return {"class": self._number[self.index.files[i].split("/", 1)[0]]} if self.tasks else {}


class Index:
    """Names of image files below a root, in order; and when each folder was last changed."""

    def __init__(self, files: list[str], folders: dict[str, int]) -> None:
        self.files, self.folders = files, folders

    @property
    def digest(self) -> str:
        """What tells this index from a damaged one."""
        return digest([*self.files, *(f"{name} {time}" for name, time in self.folders.items())])

    def fresh(self, root: Path) -> bool:
        """Whether no folder has changed: adding, removing or renaming a file changes its folder's time."""
        try:
            return all((root / name).stat().st_mtime_ns == time for name, time in self.folders.items())
        except OSError:
            return False


def index_of(root: Path) -> Index:
    """The index of a folder: the cached one if no folder has changed since, else a new one."""
    path = cache_path(root)
    try:
        kept = json.loads(path.read_text())
        index = Index(kept["files"], kept["folders"])
        if index.digest == kept["digest"] and index.fresh(root):
            return index
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # none, torn or of another version: made anew
    folders: dict[str, int] = {}
    index = Index(sorted(_walk(root, "", folders)), folders)
    with suppress(OSError, RunError):  # no cache to write to: the index is only made again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"files": index.files, "folders": index.folders, "digest": index.digest})
        write_whole(path, content, lasting=False)  # also when several ranks write it
    return index


def cache_path(root: Path) -> Path:
    """Where the index of a folder is kept: in the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "sslzoo" / f"index3-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.json"


def _walk(root: Path, inside: str, folders: dict[str, int], above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    found = (root / inside).stat()
    way = (*above, (found.st_dev, found.st_ino))
    if way[-1] in above and any((root / inside.rsplit("/", up)[0]).is_symlink() for up in range(len(above))):
        raise ValueError(f"root: {root / inside} is a link to a folder that it lies in, so there is no end to it")
    folders[inside] = found.st_mtime_ns
    with os.scandir(root / inside) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue  # .ipynb_checkpoints and thumbnails, and what unpacking on a Mac leaves
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir():
                yield from _walk(root, name, folders, way)
            elif entry.name.lower().endswith(ENDINGS) and (entry.is_file() or entry.is_symlink()):
                yield name  # no pipe or socket, which would be waited for; a link to nowhere is told when it is read
