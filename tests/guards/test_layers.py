"""Imports point down and never up: read from the source, not from what happens to be imported."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the top; a room may import from rooms further down, and from its own row.
ROWS = [
    "cli __main__",
    "compare",
    "launch scaffold",
    "report",
    "evaluate speed",
    "train",
    "recipe",
    "run",
    "step",
    "plugins",
    "hooks",
    "contracts",
    "photo",
    "files",
    "progress errors keys rng",
]
LEVEL = {name: len(ROWS) - row for row, names in enumerate(ROWS) for name in names.split()}
ASIDE = {"nn", "testing", "pytest_plugin", "blocks", "__init__"}  # conveniences for plugins; the list of public names


def imported(path):
    tree = ast.parse(path.read_text())
    hidden = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ([node.module] if node.module != "sslzoo" else [f"sslzoo.{alias.name}" for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(path):
    return path.relative_to(ROOT / "sslzoo").parts[0].removesuffix(".py")


MODULES = sorted((ROOT / "sslzoo").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_downwards_and_no_plugin(path):
    own = room(path)
    assert own in LEVEL or own in ASIDE, f"{own} has no place in the list of rows"
    for name in imported(path):
        assert not name.startswith("sslzoo_"), f"the engine imports the plugin {name}"
        parts = name.split(".")
        if parts[0] == "sslzoo" and len(parts) > 1 and parts[1] in LEVEL and own in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name}, which stands above it"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_import_public_rooms_and_not_one_another(path):
    own = path.relative_to(ROOT / "plugins").parts[0]
    public = {"sslzoo", "contracts", "keys", "nn", "blocks", "testing", "errors", "files", "rng"}
    import sslzoo

    for name in imported(path):
        parts = name.split(".")
        assert not parts[0].startswith("sslzoo_") or parts[0] == own, f"{own} imports the plugin {name}"
        if parts[0] == "sslzoo" and len(parts) > 1:
            assert parts[1] in public or parts[1] in sslzoo.__all__, f"{own} imports {name}, which is not public"


def test_every_dependency_of_an_installation_is_imported_by_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.match(r"[\w-]+", one)[0].lower() for one in project["dependencies"]}
    homes = packages_distributions()
    modules = {name.split(".")[0] for path in (*MODULES, *PLUGINS) for name in imported(path)}
    assert asked <= {home.lower() for name in modules for home in homes.get(name, ())}
