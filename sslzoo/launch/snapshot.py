"""What must not change after a run was submitted? Code, plugins and the list of packages, copied beside the run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

from sslzoo.plugins import Catalogue

_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc")


def take(installed: Catalogue, files: Sequence[Path], place: Path) -> tuple[Path, ...]:
    """Copies sslzoo, every loaded plugin and the given plugin files to `place`; returns where the files now lie.

    With `place` first on PYTHONPATH a job runs this code, whatever becomes of the installed one.
    """
    contents = [file.read_bytes() for file in files]  # they may lie in an older snapshot
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
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
            shutil.copytree(origin.parent, place / name, ignore=_LEFT_OUT)
        else:
            shutil.copy2(origin, place / origin.name)
    copied = []
    for number, (file, content) in enumerate(zip(files, contents, strict=True)):
        copied.append(place / "plugin_files" / str(number) / file.name)  # two files may have one name
        copied[-1].parent.mkdir(parents=True)
        copied[-1].write_bytes(content)
    found = sorted(f"{one.metadata['Name']}=={one.version}" for one in distributions())
    (place / "environment.txt").write_text(f"# Python {sys.version}\n" + "\n".join(found) + "\n")
    return tuple(copied)
