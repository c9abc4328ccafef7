"""How does a plugin begin? With a working one: a package or a lone file, which the author then changes."""

from __future__ import annotations

import ast
import keyword
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import yaml

from sslzoo.errors import UserError, did_you_mean
from sslzoo.plugins import FAMILIES, Catalogue
from sslzoo.recipe.recipe import MANY, ONE, split_keys

PARTS = files("sslzoo.scaffold").joinpath("parts")
# What a person types, and the family it stands for.
KINDS = {word: family for family, word in FAMILIES.items() if (PARTS / f"{family}.py").is_file()}


def write(kind: str, name: str, into: Path, *, lone: bool, installed: Catalogue) -> list[Path]:
    """Writes a plugin; returns its files.

    Raises:
        UserError: the name cannot be used, or something is there already.
    """
    if kind not in KINDS:
        raise UserError(f"nothing called {kind!r} can be made{did_you_mean(kind, KINDS)}\naccepted: {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise UserError(f"NAME: found {name!r}; small letters, digits and hyphens are wanted, such as my-{kind}")
    family = KINDS[kind]
    if name in installed.parts[family]:
        owner = installed.parts[family][name].plugin
        raise UserError(f"the plugin {owner} already offers a {kind} called {name!r}; choose another name")
    if _class(name) in _taken(family):
        raise UserError(
            f"NAME: found {name!r}; its class {_class(name)} would hide a name of Python or of the plugin's"
        )
    if name in installed.plugins:
        raise UserError(f"NAME: found {name!r}; a plugin is called so, of {installed.plugins[name].origin}")
    texts = {f"{_module(name)}.py": _part(family, name)} if lone else _package(kind, family, name)
    top = into if lone else into / f"sslzoo-{name.replace('_', '-')}"
    there = [top / path for path in texts if (top / path).exists()]
    if there:
        raise UserError(f"{there[0]} is there already, and nothing is written over")
    if find_spec(_module(name)):
        raise UserError(f"NAME: found {name!r}; its module {_module(name)} would hide one that is installed")
    for path, text in texts.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    return [top / path for path in texts]


def _module(name: str) -> str:
    return f"sslzoo_{name.replace('-', '_')}"


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in re.split("[-_]", name))


def _taken(family: str) -> set[str]:
    """Names that a class cannot have: Python's keywords, and those that the template reads, such as what it imports."""
    nodes = list(ast.walk(ast.parse((PARTS / f"{family}.py").read_text())))
    read = {node.id for node in nodes if isinstance(node, ast.Name)}
    imported = {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    return read | imported | set(keyword.kwlist)


def _part(family: str, name: str) -> str:
    text = (PARTS / f"{family}.py").read_text()
    return text.replace("Example", _class(name)).replace('"example"', f'"{name}"').replace("`example`", f"`{name}`")


def _package(kind: str, family: str, name: str) -> dict[str, str]:
    module, title = _module(name), _class(name)
    words = {"name": name, "module": module, "title": title, "kind": kind, "family": family}
    words["distribution"] = f"sslzoo-{name.replace('_', '-')}"
    return {
        f"{module}.py": _part(family, name),
        "pyproject.toml": _PYPROJECT.format(**words),
        f"tests/test_{name.replace('-', '_')}.py": _TEST.format(**words),
        "recipes/tiny.yaml": recipe(family, name),
        "README.md": _README.format(**words),
    }


def recipe(family: str, name: str) -> str:
    """A recipe of ten steps that uses the part, the rest being I-JEPA on rendered scenes."""
    tree = yaml.safe_load(_RECIPE)
    tree["name"], new = f"{name}-tiny", {"use": name}
    for section in (section for section, one in (ONE | MANY).items() if one == family):
        old = tree[section] if section in ONE else next(iter(tree[section].values()))
        kept = split_keys(old, section)[1] | ({"size": 32} if family == "views" else {})
        old.clear()
        old |= new | kept
    if family == "probes":
        tree["evaluate"]["probes"] = {name: new}
    return f"# Ten steps with {name}: sslzoo train recipes/tiny.yaml\n" + yaml.safe_dump(
        tree, sort_keys=False, default_flow_style=None, width=110
    )


_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "The {kind} {name} for sslzoo"
requires-python = ">=3.11"
dependencies = ["sslzoo"]

# How sslzoo finds it; the name on the left is the plugin's.
[project.entry-points.sslzoo]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""

_TEST = """\
import pytest
from {module} import {title}


@pytest.mark.sslzoo("{family}", {title})  # add keys: sslzoo("{family}", {title}, key=value)
def test_{module}_keeps_its_contract(sslzoo_check):
    sslzoo_check()
"""

_README = """\
# {distribution}

The {kind} `{name}` for sslzoo.

```sh
pip install -e . pytest
sslzoo show {family} {name}            # its keys
sslzoo verify {family} {name}          # does it keep its contract?
sslzoo check recipes/tiny.yaml         # shapes of one step
sslzoo train recipes/tiny.yaml         # ten steps
pytest
```
"""

_RECIPE = """\
name: ""
data: {use: scenes, length: 64, size: 32}
views:
  image: {use: crop, size: 32}
masks:
  image: {use: multiblock, min_keep: 1}
encoder: {use: vit, width: 48, depth: 2, heads: 3, patch: 8, init: 0.1}
predictor: {use: ijepa, width: 48, depth: 1, heads: 3}
targets:
  teacher: {use: ema, momentum: 0.99}
losses:
  guess: {use: smooth_l1, predict: predictor.patch, target: teacher.patch}
optim: {lr: 0.001, weight_decay: 0.05}
run: {steps: 10, batch: 8, precision: fp32, workers: 0, log_every: 1, monitor: 16, monitor_every: 5 steps}
evaluate:
  train: {use: scenes, length: 100, size: 32}
  test: {use: scenes, split: test, length: 50, size: 32}
  view: {use: center, size: 32, resize: 32}
  probes: {knn: {use: knn}}
"""
