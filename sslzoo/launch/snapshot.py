"""What must not change while a job waits? Code, plugins and the list of packages, copied beside the run.

A copy bears the name of its content and is never replaced: runs of one folder that were submitted at different times
each keep the code of their own submission.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

from sslzoo.errors import RunError
from sslzoo.plugins import Catalogue

MARK = "snapshots.txt"
_MARKED = "Copied by sslzoo: the code that the jobs of these runs use. What no launch.json names may be deleted.\n"


@dataclass(frozen=True)
class Snapshot:
    """The code of now: its files by their names in a copy. With `folder` first on PYTHONPATH a job runs this code."""

    top: Path  # where copies lie
    files: Mapping[str, bytes]
    plugins: tuple[Path, ...]  # where the given plugin files will lie

    @property
    def folder(self) -> Path:
        """Where the copy lies, or will."""
        return self.top / _digest(self.files)

    def write(self) -> bool:
        """Copies the code, unless such a copy is there; returns whether it is new.

        Raises:
            RunError: it cannot be written, would lie among files that are not sslzoo's, or was changed since.
        """
        refuse_foreign(self.top)
        try:
            if self.folder.exists():
                if not all(_is(self.folder / name, content) for name, content in self.files.items()):
                    raise RunError(f"{self.folder} was changed since it was copied: remove it if no job needs it")
                return False
            self.top.mkdir(parents=True, exist_ok=True)
            (self.top / MARK).write_text(_MARKED)
            fresh = self.top / f".writing-{uuid.uuid4().hex}"
            try:
                for name, content in self.files.items():
                    (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                    (fresh / name).write_bytes(content)
                fresh.rename(self.folder)
            except OSError:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
        except OSError as error:
            raise RunError(f"the run folder {self.top.parent} cannot be written: {error}") from error
        return True

    def remove(self) -> None:
        """Takes back what `write` made."""
        shutil.rmtree(self.folder)
        if [path.name for path in self.top.iterdir()] == [MARK]:
            shutil.rmtree(self.top)


def of(installed: Catalogue, files: Sequence[Path], top: Path) -> Snapshot:
    """sslzoo, every loaded plugin and the given plugin files as they are now, to be copied to a folder in `top`."""
    packages = {"sslzoo"} | {
        module.__name__.split(".")[0]
        for _, module in installed.manager.list_name_plugin()
        if isinstance(module, ModuleType)
    }
    found: dict[str, bytes] = {}
    for name in sorted(packages & set(sys.modules)):
        origin = Path(sys.modules[name].__file__ or "")
        if origin.resolve() not in files:
            found |= dict(_package(origin) if origin.name == "__init__.py" else [(origin.name, origin.read_bytes())])
    names = [Path("plugin_files") / str(number) / file.name for number, file in enumerate(files)]  # may have one name
    found |= {str(name): file.read_bytes() for name, file in zip(names, files, strict=True)}
    versions = sorted(f"{one.metadata['Name']}=={one.version}" for one in distributions())
    found["environment.txt"] = "\n".join([f"# Python {sys.version}", *versions, ""]).encode()
    return Snapshot(top, found, tuple(top / _digest(found) / name for name in names))


def refuse_foreign(top: Path) -> None:
    """Raises RunError if something lies at `top` that was not made by sslzoo."""
    if (top.exists() or top.is_symlink()) and not (top / MARK).is_file():
        raise RunError(
            f"{top} was not made by sslzoo, and a submission copies code there: choose another run folder with --out"
        )


def _package(origin: Path) -> Iterator[tuple[str, bytes]]:
    folder = origin.parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(folder.parent)), path.read_bytes()


def _digest(files: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name, content in sorted(files.items()):
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:12]


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
