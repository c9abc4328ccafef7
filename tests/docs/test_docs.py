"""Do the pages say what is so? Commands are parsed as the command line would, recipes are checked, links lead somewhere."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from sslzoo import RecipeError
from sslzoo.cli import cli
from sslzoo.plugins import catalogue
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load, names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml"))


def commands():
    """Every `sslzoo ...` of a page's shell blocks, of a recipe's header, and of a command's own examples."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", page.read_text(), flags=re.S):
            found |= dict.fromkeys(
                re.findall(r"(?:^|&& |-m |\$ )(sslzoo [^#\n]*)", block.replace("\\\n", " "), flags=re.M)
            )
    for recipe in RECIPES:
        found |= dict.fromkeys(re.findall(r"^# Run: .*?(sslzoo [^#\n]*)", recipe.read_text(), flags=re.M))
    for name in cli.list_commands(click.Context(cli)):
        text = cli.get_command(click.Context(cli), name).help
        found |= dict.fromkeys(re.findall(r"^\s*(sslzoo [^#\n]*)", text.split("Examples:")[1], flags=re.M))
    return [re.split(r" > | {2,}", command.strip())[0] for command in found]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_pages_parses(command):
    words = shlex.split(command)[1:]
    context = click.Context(cli)
    name, sub, rest = cli.resolve_command(context, words)
    values = sub.make_context(name, list(rest), parent=context).params
    recipe = values.get("recipe")
    if recipe and not recipe.endswith(".yaml") and "/" in recipe and not recipe.startswith("runs/"):
        assert recipe in names(catalogue())
    for change in values.get("sets", ()):
        assert "=" in change


def test_the_recipe_of_its_page_passes_check(tmp_path):
    text = (ROOT / "docs" / "recipes.md").read_text()
    (tmp_path / "r.yaml").write_text(re.search(r"```yaml\n(name: .*?)```", text, flags=re.S)[1])
    assert not check(*load(str(tmp_path / "r.yaml"))).unused


def test_the_errors_of_its_page_are_those_that_come(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "recipes.md").read_text()
    recipe = re.search(r"```yaml\n(name: .*?)```", text, flags=re.S)[1]
    for right, wrong in {
        "min_keep:": "min_keeps:",
        "use: ijepa": "use: i-jepa",
        "target: teacher": "target: teachr",
    }.items():
        assert recipe.count(right) == 1
        recipe = recipe.replace(right, wrong)
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as error:
        load("mine.yaml")
    assert f"```\n{error.value}\n```" in text


def test_the_schedules_of_its_page_are_schedules():
    from sslzoo import Schedule
    from sslzoo.recipe import yamltext

    text = (ROOT / "docs" / "recipes.md").read_text()
    block = re.search(r"```yaml\n(constant: .*?)```", text, flags=re.S)[1]
    for schedule in yamltext.value(block).values():
        Schedule.parse(schedule)


def test_the_evaluation_of_its_page_is_one(tmp_path):
    section = re.search(r"```yaml\n(evaluate:.*?)```", (ROOT / "docs" / "evaluate.md").read_text(), flags=re.S)[1]
    page = re.search(r"```yaml\n(name: .*?)```", (ROOT / "docs" / "recipes.md").read_text(), flags=re.S)[1]
    (tmp_path / "r.yaml").write_text(page + section)
    assert load(str(tmp_path / "r.yaml"))[0].evaluate is not None


def test_the_study_of_its_page_is_one(tmp_path):
    from sslzoo.compare.study import read

    text = (ROOT / "docs" / "compare.md").read_text()
    blocks = re.findall(r"```yaml\n((?:study|evaluate):.*?)```", text, flags=re.S)
    assert len(blocks) == 2
    (tmp_path / "masks.yaml").write_text("".join(blocks))
    offered = (
        "from sslzoo import hookimpl\n\n\n@hookimpl\ndef sslzoo_masks():\n    return {}\n"  # an empty file is refused
    )
    (tmp_path / "my_masks.py").write_text(offered)
    study = read(tmp_path / "masks.yaml", tmp_path / "out")
    assert len(study.cells) == 9
    assert list(study.cells[0].recipe.evaluate.probes) == ["linear"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parts_named_in_tables_of_the_pages_exist(page):
    """`{use: NAME` in a page names an installed part."""
    installed = {name for family in catalogue().parts.values() for name in family}
    mine = {"edges", "my-guess", "variance-covariance"}
    for name in re.findall(r"\{use: ([\w-]+)", page.read_text()):
        assert name in installed | mine, name


def test_the_page_of_costs_has_every_recipe_of_a_published_linear_probe():
    """Else `python benchmarks/costs.py` writes it again; its figures take minutes to count."""
    page = (ROOT / "docs" / "costs.md").read_text()
    told = dict(re.findall(r"^\| (\w+/\S+) \| ([\d.]+) \|", page, flags=re.M))
    spec = importlib.util.spec_from_file_location("costs", ROOT / "benchmarks" / "costs.py")
    costs = sys.modules["costs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(costs)
    assert {name: float(top1) for name, top1 in told.items()} == costs.published()
