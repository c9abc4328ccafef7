"""What does a study ask? YAML to cells: a base recipe, named variants as lists of changes, seeds, a budget.

study: masks
base: tiny/ijepa
set: [run.workers=0]
variants:
multiblock: []
random: ["masks.image={use: random, hide: 0.6}"]
baseline: multiblock
seeds: 3
budget: {equal: images}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from sslzoo.compare.budget import Budget, Cost, changes, cost_of, length_of, steps_for
from sslzoo.errors import Problem, UserError, did_you_mean, did_you_mean_beside
from sslzoo.plugins import Catalogue, catalogue
from sslzoo.recipe import signature, yamltext
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import Recipe, find, load, resolve, studies

METHOD = ("views", "masks", "predictor", "targets", "losses", "optim")  # what makes a method, with equal encoders
# What a study says for all of its cells, and a change would only seem to.
OWN = {"run.steps": "the budget sets how long a variant trains", "run.seed": "the study's key seeds says which"}
OWN |= {"run.epochs": OWN["run.steps"], "name": "a cell is called by its variant and seed"}


class Own(signature.Keys):
    """A variant with a base of its own, such as another method."""

    base: str
    set: list[str] = Field([])


class Keys(signature.Keys):
    """The keys of a study."""

    study: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,79}$")
    base: str
    set: list[str] = Field([])
    plugins: list[str] = Field([])
    variants: dict[str, list[str] | Own] = Field(min_length=1)
    baseline: str | None = None
    seeds: int | list[int] = 3
    budget: Budget = Budget(equal="images", length=None)
    evaluate: dict[str, Any] | None = None
    networks: Literal["all", "teacher", "student"] = "all"


@dataclass(frozen=True)
class Variant:
    """One variant: its changes to the base, those that the budget adds, and what a step of it costs."""

    name: str
    base: str
    sets: tuple[str, ...]
    scaled: tuple[str, ...]
    steps: int
    cost: Cost


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    variant: str
    seed: int
    folder: Path
    recipe: Recipe
    installed: Catalogue


@dataclass(frozen=True)
class Study:
    """A study that was read and checked: its variants, seeds and cells."""

    name: str
    keys: Keys
    baseline: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    cells: tuple[Cell, ...]
    folder: Path

    @property
    def features(self) -> Path:
        """Where features lie that runs of the study share."""
        return self.folder / "features"

    def named(self) -> dict[str, tuple[str, ...]]:
        """Places of the recipe that each variant names: what is asked. Another base asks for another method."""
        shared = self.variants[0].base
        return {
            one.name: (
                *(_place(change) for change in one.sets),
                *(METHOD if any(other.base != shared for other in self.variants) else ()),
            )
            for one in self.variants
        }


def find_study(name: Path, plugins: Sequence[Path] = ()) -> Path | None:
    """The file of a study: a .yaml file, or a name in the folder `studies` of a plugin's recipes; None for run folders.

    Raises:
        UserError: it is neither; names the nearest.
    """
    if name.is_file():
        return name
    if name.is_dir():
        return None
    known = studies(catalogue(plugins))
    if str(name) in known:
        return known[str(name)]
    if name.suffix in (".yaml", ".yml"):
        close = did_you_mean_beside(name)
        raise UserError(f"no file is called {str(name)!r}{close}\nshipped studies go by name: {', '.join(known)}")
    close = did_you_mean(str(name), known) or did_you_mean_beside(name)
    raise UserError(f"no study or run folder is called {str(name)!r}{close}\nshipped studies: {', '.join(known)}")


def read(path: Path, out: Path | None = None, plugins: Sequence[Path] = (), *, measure: bool = True) -> Study:
    """Reads a study, and checks every variant as `sslzoo check` would.

    A budget of seconds is measured by a few steps of each variant, once, unless `measure` is false.

    Raises:
        RecipeError: everything wrong with the study or its variants, at once.
        UserError: it names a base or baseline that there is not.
    """
    text = yamltext.read(path, str(path))
    values, problems = signature.validate(Keys, text.tree, "", "a study")
    if problems:
        raise text.error([Problem(p.place.lstrip("."), p.message) for p in problems])
    keys = Keys.model_construct(**values)
    baseline = _baseline(keys, text)
    _refuse_names(keys, text)
    seeds = _seeds(keys, text)
    if wrong := _not_its_own(keys.set, but=("run.steps", "run.epochs")):
        raise text.error([Problem("set", wrong)])
    files = [*((path.parent / signature.expand(Path(one))).resolve() for one in keys.plugins), *plugins]
    common = [*keys.set, *([f"evaluate={yamltext.written(keys.evaluate)}"] if keys.evaluate else [])]
    folder = out or Path("runs") / keys.study
    variants, problems = _variants(keys, path.parent, common, files, baseline, folder / "seconds.json", measure)
    if problems:
        raise text.error(problems)
    cells = []
    for one in variants:
        for seed in seeds:
            home = folder / one.name / f"seed-{seed}"
            cells.append(Cell(one.name, seed, home, *_load(one, common, seed, files)))
    return Study(keys.study, keys, baseline, seeds, tuple(variants), tuple(cells), folder)


def _load(one: Variant, common: Sequence[str], seed: int, files: Sequence[Path]) -> tuple[Recipe, Catalogue]:
    name = f"name={one.name}-seed-{seed}"
    return load(one.base, [*common, *one.sets, *one.scaled, f"run.seed={seed}", name], files)


def _base(name: str, folder: Path, files: Sequence[Path]) -> str:
    """A base beside the study, or a recipe by name."""
    beside = folder / name
    if beside.is_file():
        return str(beside)
    find(name, files)  # refuses a name that there is not
    return name


def _baseline(keys: Keys, text: yamltext.Text) -> str:
    baseline = keys.baseline or next(iter(keys.variants))
    if baseline not in keys.variants:
        message = f"no variant is called {baseline!r}{did_you_mean(baseline, keys.variants)}"
        there = f"{message}\nvariants: {', '.join(keys.variants)}"
        raise text.error([Problem("baseline", there)])
    return baseline


def _refuse_names(keys: Keys, text: yamltext.Text) -> None:
    """Each variant has a folder of its name."""
    wrong = [name for name in keys.variants if not _is_plain(name)]
    if wrong:
        message = f"found {wrong[0]!r}; letters, digits, '.', '-' and '_', for it names a folder"
        raise text.error([Problem("variants", message)])


def _is_plain(name: str) -> bool:
    return bool(name) and name[0].isalnum() and len(name) <= 80 and all(c.isalnum() or c in "._-" for c in name)


def _seeds(keys: Keys, text: yamltext.Text) -> tuple[int, ...]:
    seeds = tuple(range(keys.seeds)) if isinstance(keys.seeds, int) else tuple(keys.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        message = f"found {keys.seeds!r}; how many, at least 1, or a list of different numbers from 0 on"
        raise text.error([Problem("seeds", message)])
    return seeds


def _place(change: str) -> str:
    """What a change names, without quotes: `optim.groups."*.bias".lr=0` is optim.groups.*.bias.lr."""
    return ".".join(yamltext.names(change.partition("=")[0].strip()))


def _not_its_own(changes: Sequence[str], but: Sequence[str] = ()) -> str:
    """The first change that is not a variant's to make, and whose it is."""
    for change in changes:
        place = _place(change)
        if place in OWN and place not in but:
            return f"found {change}; {OWN[place]}"
    return ""


def _twins(found: Mapping[str, _Priced]) -> Iterator[Problem]:
    """Variants that are no other than one before them: their difference would be 0, whatever was asked."""
    known: dict[str, str] = {}
    for name, one in found.items():
        tree = yaml.safe_load(resolve(one.recipe, one.installed)) | {"name": ""}
        first = known.setdefault(json.dumps(tree, sort_keys=True, default=str), name)
        if first != name:
            yield Problem(f"variants.{name}", f"it is the same recipe as {first}; nothing would differ")


@dataclass(frozen=True)
class _Priced:
    """A variant as it was written, and what a step of it costs."""

    base: str
    sets: list[str]
    recipe: Recipe
    installed: Catalogue
    cost: Cost


def _variants(
    keys: Keys, folder: Path, common: Sequence[str], files: Sequence[Path], baseline: str, kept: Path, measure: bool
) -> tuple[list[Variant], list[Problem]]:
    """Every variant with the changes that the budget asks for; the baseline's cost is the measure of all."""
    found: dict[str, _Priced] = {}
    bases: dict[str, Cost] = {}  # their own lengths
    problems: list[Problem] = []
    for name, given in keys.variants.items():
        own, base = (given.set, given.base) if isinstance(given, Own) else (given, keys.base)
        place = f"variants.{name}"
        if wrong := _not_its_own(own):
            problems.append(Problem(place, wrong))
            continue
        try:
            base = _base(base, folder, files)
            recipe, installed = load(base, [*common, *own], files)
            cost = cost_of(recipe, installed, keys.budget, check(recipe, installed), kept, measure=measure)
            found[name] = _Priced(base, own, recipe, installed, cost)
            if base not in bases:
                bases[base] = length_of(*load(base, common, files)) if own else cost
        except UserError as error:
            problems.append(Problem(place, str(error)))
    problems += _twins(found)
    if problems:
        return [], problems
    variants = []
    for name, one in found.items():
        steps = steps_for(one.cost, found[baseline].cost, keys.budget)
        scaled = tuple(changes(one.recipe, one.installed, bases[one.base], one.cost, steps))
        variants.append(Variant(name, one.base, tuple(one.sets), scaled, steps, one.cost))
    return variants, []
