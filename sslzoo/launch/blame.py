"""Whose error is it? Tells a plugin that misbehaves from an engine that does."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sslzoo.plugins import Catalogue, singular
from sslzoo.recipe.recipe import Recipe

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')
Frame = tuple[str, int, str]  # file, line, call


def blame(error: BaseException, recipe: Recipe, installed: Catalogue) -> str:
    """In which part an error arose: the part and its line in the recipe, its plugin with version; or nothing.

    Errors from loader workers arrive as text, so their frames are read from it.
    """
    frames: list[Frame] = [
        (one.filename, one.lineno or 0, one.name) for one in traceback.extract_tb(error.__traceback__)
    ]
    frames += [(file, int(line), call) for file, line, call in _FRAME.findall(str(error))]
    homes = _homes(installed)
    for number, (file, line, call) in reversed(list(enumerate(frames))):
        plugin = next((name for home, name in homes.items() if Path(file) == home or home in Path(file).parents), None)
        if plugin is not None:
            version = installed.plugins[plugin].version
            where = f"this arose in the plugin {plugin} {version}, in {call}(), {file}, line {line}"
            return where + _used(plugin, frames[: number + 1], recipe, installed)
    return ""


def _homes(installed: Catalogue) -> dict[Path, str]:
    """The file of each plugin, or the folder of its package."""
    homes = {}
    for name, module in installed.manager.list_name_plugin():
        if isinstance(module, ModuleType) and module.__file__:
            path = Path(module.__file__)
            homes[path.parent if path.name == "__init__.py" else path] = name
    return homes


def _used(plugin: str, frames: Sequence[Frame], recipe: Recipe, installed: Catalogue) -> str:
    """The parts of the recipe that it may be: those whose own code called last, else all that the plugin gave."""
    parts = {place: installed.parts[family][spec["use"]] for place, family, spec in recipe.parts(installed)}
    for frame in reversed(frames):
        called = [place for place, part in parts.items() if _holds(part.make, frame)]
        if called:
            break
    else:
        called = [place for place, part in parts.items() if part.plugin == plugin]
    named = []
    for place in called:
        line = recipe.text.line(place)
        where = f"line {line} of {recipe.text.source}, {place}" if line else place
        named.append(f"{singular(parts[place].family)} {parts[place].name!r} ({where})")
    return f"; the recipe uses its {' and its '.join(named)}" if named else ""


def _holds(make: Any, frame: Frame) -> bool:
    """Whether a class, or one it is made of, holds this line."""
    file, line, _ = frame
    for one in make.__mro__ if isinstance(make, type) else (make,):
        try:
            source, first = inspect.getsourcelines(one)
        except (OSError, TypeError):  # made elsewhere than in a file
            continue
        if inspect.getsourcefile(one) == file and first <= line < first + len(source):
            return True
    return False


def explain(error: BaseException, whose: str) -> str:
    """Whose error it is, if anybody's, and its traceback; the error itself comes last."""
    text = "".join(traceback.format_exception(error))
    return f"{whose}\n{text}" if whose else text
