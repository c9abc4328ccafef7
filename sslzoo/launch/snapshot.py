"""What must not change after a run was submitted? Code, plugins and the list of packages, copied beside the run.

A folder is replaced only if it bears the mark of an earlier copy.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

from sslzoo.errors import RunError
from sslzoo.plugins import Catalogue

MARK = "snapshot.txt"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def take(installed: Catalogue, files: Sequence[Path], folder: Path) -> tuple[Path, ...]:
    """Copies sslzoo, every loaded plugin and the given plugin files; returns where the files will lie.

    The copy lies beside `folder` until it is `exchanged`. With `folder` first on PYTHONPATH a job runs this code,
    whatever becomes of the installed one.
    """
    fresh = _fresh(folder)
    _remove(fresh)
    fresh.mkdir(parents=True)
    (fresh / MARK).write_text("Copied by sslzoo for the jobs of this run; the next submission replaces this folder.\n")
    packages = {"sslzoo"} | {
        module.__name__.split(".")[0]
        for _, module in installed.manager.list_name_plugin()
        if isinstance(module, ModuleType)
    }
    for name in sorted(packages & set(sys.modules)):
        origin = Path(sys.modules[name].__file__ or "")
        if origin.resolve() in files:
            continue
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, fresh / name, ignore=_LEFT_OUT)
        else:
            shutil.copy2(origin, fresh / origin.name)
    names = [Path("plugin_files") / str(number) / file.name for number, file in enumerate(files)]  # may have one name
    for file, name in zip(files, names, strict=True):
        (fresh / name).parent.mkdir(parents=True)
        shutil.copyfile(file, fresh / name)
    found = sorted(f"{one.metadata['Name']}=={one.version}" for one in distributions())
    (fresh / "environment.txt").write_text(f"# Python {sys.version}\n" + "\n".join(found) + "\n")
    return tuple(folder / name for name in names)


def refuse_foreign(folder: Path) -> None:
    """Raises RunError if something lies at `folder`, or where copies wait, that was not made by `take`."""
    for one in (folder, _fresh(folder), _before(folder)):
        if (one.exists() or one.is_symlink()) and not (one / MARK).is_file():
            raise RunError(
                f"{one} was not made by sslzoo, and a submission would replace it: choose another run folder with --out"
            )


@contextmanager
def exchanged(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """Puts the copy that `take` made in its place; if what follows fails, the one before and `files` come back."""
    had = {file: file.read_bytes() if file.is_file() else None for file in files}
    fresh, before = _fresh(folder), _before(folder)
    new = fresh.exists()
    if new:
        _remove(before)
        if folder.exists():
            folder.rename(before)
        fresh.rename(folder)
    try:
        yield
    except BaseException:
        if new:
            _remove(folder)
            if before.exists():
                before.rename(folder)
        for file, content in had.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)
        raise
    _remove(before)


def _fresh(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.writing")


def _before(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.before")


def _remove(copy: Path) -> None:
    """Removes a copy that `take` made; everything else stays."""
    if (copy / MARK).is_file():
        shutil.rmtree(copy)
