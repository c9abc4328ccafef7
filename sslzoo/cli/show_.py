"""`sslzoo show`: a part's keys, or a recipe with every default."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import click

from sslzoo.cli.options import json_option, recipe_options


@click.command("show")
@click.argument("words", nargs=-1, required=True)
@recipe_options
@json_option
def command(words: tuple[str, ...], sets: tuple[str, ...], plugins: tuple[Path, ...], as_json: bool) -> None:
    """A part (FAMILY NAME) with every key, its type and default; or a RECIPE with every default written out.

    FAMILY is needed only where several families have a part of that name.
    Also a section of recipes that is the engine's (run, optim, evaluate), with every key.
    Also a name that authors of plugins import, such as Rng: its docstring and methods.

    \b
    Examples:
      sslzoo show masks multiblock
      sslzoo show multiblock
      sslzoo show run
      sslzoo show tiny/ijepa
      sslzoo show Rng
      sslzoo show tiny/ijepa --set run.steps=60 > mine.yaml
    """
    from sslzoo.cli import echo_folded, echo_json
    from sslzoo.errors import UserError, did_you_mean
    from sslzoo.plugins import FAMILIES, catalogue
    from sslzoo.recipe import told
    from sslzoo.scaffold import api

    if sets and len(words) == 1 and words[0] in (*api.HOME, *told.SECTIONS):
        raise UserError(f"--set changes recipes, and {words[0]} is none")
    if len(words) == 1 and words[0] in api.HOME:
        called, _, said = api.describe(words[0], told.flowing).removesuffix("\n").partition("\n")
        echo_folded(called)
        echo_folded(said, 0)
        return
    if len(words) == 1 and words[0] in told.SECTIONS:
        _section(words[0], as_json)
        return
    if len(words) == 1 and words[0] in FAMILIES:
        known = ", ".join(sorted(catalogue(plugins).parts[words[0]]))
        raise UserError(f"{words[0]} is a family of parts; wanted: {words[0]} NAME\ninstalled: {known}")
    if len(words) == 1:
        words = _part_of_that_name(words[0], plugins)
    if len(words) == 1:
        _recipe(words[0], sets, plugins, as_json)
        return
    if len(words) != 2 or words[0] not in FAMILIES:
        close = did_you_mean(words[0], FAMILIES)
        raise UserError(
            f"found {' '.join(words)!r}{close}\nwanted: a recipe, or FAMILY NAME; families: {', '.join(FAMILIES)}"
        )
    if sets:
        raise UserError(f"--set changes recipes; {' '.join(words)} is a part, shown with the defaults of its keys")
    part = catalogue(plugins).find(*words)
    if as_json:
        named = {"name": part.name, "family": part.family, "plugin": part.plugin, "version": part.version}
        echo_json(named | {"doc": inspect.getdoc(part.make), "keys": _as_json(part.make)})
        return
    echo_folded(f"{part.name}  ({part.family}, plugin {part.plugin} {part.version})\n\n{told.prose(part.make)}", 0)
    found = told.keys(part.make)
    echo_folded("\n".join(["\nKeys:", *(f"  {key.line}" for key in found)]) if found else "\nIt takes no keys.")


def _section(name: str, as_json: bool) -> None:
    """A section of recipes that the engine reads: its keys, and which may change at a resume."""
    from sslzoo.cli import echo_folded, echo_json
    from sslzoo.recipe import told

    if as_json:
        echo_json({"section": name, "keys": _as_json(told.SECTIONS[name])})
        return
    found = told.keys(told.SECTIONS[name])
    echo_folded(f"{name}  (a section of recipes)\n\n{told.prose(told.SECTIONS[name])}\n\nKeys:", 0)
    for key in found:
        echo_folded(f"  {key.line}")
    free = [key.name for key in found if key.free]
    some = "all" if len(free) == len(found) else ", ".join(free) or "none"
    echo_folded(f"\nMay change when a run is resumed: {some}.")
    if name == "optim":
        echo_folded("Beside them the optimizer's own keys: `sslzoo show optimizers adamw`.")


def _as_json(thing: Any) -> dict[str, dict[str, Any]]:
    from dataclasses import asdict

    from sslzoo.recipe import told

    return {one["name"]: {k: v for k, v in one.items() if k != "name"} for one in map(asdict, told.keys(thing))}


def _part_of_that_name(word: str, plugins: tuple[Path, ...]) -> tuple[str, ...]:
    """(family, word) of a part, or (word,) of a recipe, a file or a run folder; a misspelt one is near to either."""
    from sslzoo.errors import UserError, did_you_mean, nearest
    from sslzoo.launch import profile
    from sslzoo.plugins import catalogue
    from sslzoo.recipe.recipe import names

    installed = catalogue(plugins)
    recipes, clusters = names(installed), profile.names(installed)
    if word in recipes or os.path.lexists(word):
        return (word,)
    if word in clusters:
        raise UserError(f"{word} is a cluster profile, for `sslzoo submit --cluster`; it is the file {clusters[word]}")
    families = [family for family, parts in installed.parts.items() if word in parts]
    if len(families) > 1:
        raise UserError(f"several parts are called {word!r}: say which of {', '.join(families)}")
    parts = [name for family in installed.parts.values() for name in family]
    if not families and "/" not in word and nearest(word, [*recipes, *parts]) in parts:
        close = did_you_mean(word, parts)
        raise UserError(f"no recipe, part or run folder is called {word!r}{close}\n`sslzoo list` lists all")
    return (families[0], word) if families else (word,)


def _recipe(name: str, sets: tuple[str, ...], plugins: tuple[Path, ...], as_json: bool) -> None:
    import yaml

    from sslzoo.cli import echo_json
    from sslzoo.recipe.recipe import load, resolve

    text = resolve(*load(name, sets, plugins))
    if as_json:
        echo_json(yaml.safe_load(text))
    else:
        click.echo(text, nl=False)
