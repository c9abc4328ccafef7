"""Whose error is it? Tells a plugin that misbehaves from an engine that does."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from types import ModuleType

from sslzoo.plugins import Catalogue, singular
from sslzoo.recipe.recipe import Recipe

_FILE = re.compile(r'File "([^"]+)", line \d+, in (\w+)')


def blame(error: BaseException, recipe: Recipe, installed: Catalogue) -> str:
    """In which part an error arose: its plugin with version, the call, and its line in the recipe; or nothing.

    Errors from loader workers arrive as text, so their frames are read from it.
    """
    frames = [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    frames += _FILE.findall(str(error))
    homes = _homes(installed)
    for file, call in reversed(frames):
        plugin = next((name for home, name in homes.items() if Path(file) == home or home in Path(file).parents), None)
        if plugin is not None:
            return _told(plugin, call, recipe, installed)
    return ""


def _homes(installed: Catalogue) -> dict[Path, str]:
    """The file of each plugin, or the folder of its package."""
    homes = {}
    for name, module in installed.manager.list_name_plugin():
        if isinstance(module, ModuleType) and module.__file__:
            path = Path(module.__file__)
            homes[path.parent if path.name == "__init__.py" else path] = name
    return homes


def _told(plugin: str, call: str, recipe: Recipe, installed: Catalogue) -> str:
    places = []
    for place, family, spec in recipe.specs():
        part = installed.parts[family][spec["use"]]
        if part.plugin == plugin:
            line = recipe.text.line(place)
            where = f"line {line} of {recipe.text.source}, {place}" if line else place
            places.append(f"{singular(family)} {part.name!r} ({where})")
    used = f"; the recipe uses its {' and its '.join(places)}" if places else ""
    version = installed.plugins[plugin].version
    return f"this arose in the plugin {plugin} {version}, in {call}(){used}"


def explain(error: BaseException, told: str) -> str:
    """Whose error it is, if anybody's, and its traceback; the error itself comes last."""
    text = "".join(traceback.format_exception(error))
    return f"{told}\n{text}" if told else text
