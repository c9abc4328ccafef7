"""May a run folder go on with this recipe? Not with another; what may change is declared on the keys: `Free`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sslzoo.errors import RunError, shown
from sslzoo.plugins import Catalogue
from sslzoo.recipe.recipe import Recipe, in_free_section, keys, resolve
from sslzoo.run.folder import Folder

_ABSENT = object()
# These agree with whatever was or will be chosen (recipe/precision.py, recipe/starting.py).
_OPEN = {(("run", "precision"), "auto"), (("start", "sha256"), "None")}


def refuse(folder: Folder, recipe: Recipe, installed: Catalogue) -> None:
    """Sees that a run folder holds no run of another recipe; changes nothing.

    Raises:
        RunError: it does; says where they differ.
    """
    folder.refuse(resolve(recipe, installed), lambda had: differences(had, recipe, installed))


def claim(folder: Folder, recipe: Recipe, installed: Catalogue, warn: Callable[[str], None]) -> None:
    """Makes a run folder for a recipe, or sees that it already holds the same one; `warn` hears of damaged files.

    Raises:
        RunError: it cannot be written, or holds another recipe; says where they differ.
    """
    refuse(folder, recipe, installed)
    folder.prepare(resolve(recipe, installed), warn)


def refuse_upgrade(folder: Folder, recipe: Recipe, installed: Catalogue) -> None:
    """Raises RunError if a plugin is not what it was when this run began."""
    changed = folder.upgraded(resolve(recipe, installed))
    if changed:
        text = f"{folder.path} was begun with other plugins:\n" + "".join(f"    {line}\n" for line in changed)
        raise RunError(text + "go on with these with --allow-upgrade, or choose another folder with --out")


def refuse_foreign(path: Path, resolved: str, recipe: Recipe, installed: Catalogue) -> None:
    """Sees that a checkpoint, which remembers the resolved recipe of its run, is one of this recipe.

    Raises:
        RunError: it is not; says where they differ.
    """
    rows = differences(yaml.safe_load(resolved), recipe, installed)
    if rows:
        lines = "".join(f"    {row}\n" for row in rows)
        raise RunError(f"{path} is of a run of another recipe:\n{lines}remove it, or choose another folder with --out")


def differences(had: Mapping[str, Any], recipe: Recipe, installed: Catalogue) -> list[str]:
    """A line for each key that differs and may not.

    A key that was not there, for it came with a later version, was what its default is now.
    """
    rows, known = [], set()
    if recipe.start is not None and not had.get("start"):
        rows.append("start: (absent) there, a file asked for")  # whose keys all have defaults, or may change
    for key in keys(recipe, installed):
        known.add(key.place)
        there = _get(had, key.place)
        if not key.free and not {(key.place, str(key.value)), (key.place, str(there))} & _OPEN:
            rows += _rows(key.place, key.default if there is _ABSENT else there, key.value)
    for place, there in leaves(had):
        if not in_free_section(place) and not any(place[: len(one)] == one for one in known):
            rows += _rows(place, there, _ABSENT)
    return rows


def _get(tree: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        if not isinstance(tree, Mapping) or name not in tree:
            return _ABSENT
        tree = tree[name]
    return tree


def _rows(place: tuple[str, ...], there: Any, asked: Any) -> list[str]:
    if there == asked:
        return []
    sides = dict(leaves(there, place)), dict(leaves(asked, place))
    rows = []
    for one in dict.fromkeys([*sides[0], *sides[1]]):
        had, wanted = (side.get(one, _ABSENT) for side in sides)
        if had != wanted:
            said = ("(absent)" if value is _ABSENT else shown(value) for value in (had, wanted))
            rows.append("{}: {} there, {} asked for".format(".".join(one), *said))
    return rows


def leaves(tree: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a resolved recipe that is no mapping, by its place."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*place, str(key)))
    elif tree is not _ABSENT:
        yield place, tree
