"""What does a recipe say? YAML to a Recipe: sections known, parts installed, keys and types right.

The first two of three passes of validation: text and parts. The third, wiring, is `build.check`. Every pass collects
all its problems before it raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sslzoo.errors import Problem, RecipeError, UserError, did_you_mean
from sslzoo.plugins import Catalogue, catalogue, missing, singular
from sslzoo.recipe import signature, yamltext
from sslzoo.recipe.schedule import Duration, Schedule
from sslzoo.recipe.yamltext import Text

Spec = Mapping[str, Any]  # {use: NAME, key: value, ...}

ONE = {"data": "datasets", "encoder": "encoders", "predictor": "predictors"}  # sections that are one part
MANY = {"views": "views", "masks": "masks", "targets": "targets", "losses": "losses"}  # sections of named parts
NEEDED = ("name", "data", "views", "encoder", "predictor", "losses", "optim", "run")
SECTIONS = ("name", "plugins", "data", "views", "masks", "encoder", "predictor", "targets", "losses", "optim", "run")
SECTIONS += ("evaluate",)


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, validate_default=True)


class GroupKeys(_Keys):
    """What an entry of `views` takes beside its part's keys."""

    count: int = Field(1, ge=1)
    role: Literal["context", "target", "both"] = "both"


class TermKeys(_Keys):
    """What an entry of `losses` takes beside its part's keys."""

    predict: str
    target: str | None = None
    weight: Schedule = Schedule.parse(1.0)


ENGINE_KEYS: dict[str, type[_Keys]] = {"views": GroupKeys, "losses": TermKeys}


class Factors(_Keys):
    """What multiplies the schedules of some parameters."""

    lr: float = 1.0
    weight_decay: float = 1.0


class Optim(_Keys):
    """The section `optim`."""

    use: Literal["adamw", "sgd"] = "adamw"
    lr: Schedule
    weight_decay: Schedule = Schedule.parse(0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    groups: dict[str, Factors] = {}
    clip: float | None = None
    clip_each: bool = False


class Run(_Keys):
    """The section `run`."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch: int = Field(ge=1)
    micro: int | None = Field(None, ge=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0
    save_every: Duration = Duration(1, "epochs")
    keep: int = Field(2, ge=1)
    milestones: Duration | None = None
    log_every: int = Field(10, ge=1)
    workers: int = Field(8, ge=0)
    compile: bool = False
    shard: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    unreadable: float = Field(0.01, ge=0, le=1)
    monitor: int = Field(256, ge=0)
    monitor_every: Duration = Duration(1, "epochs")

    @model_validator(mode="after")
    def _one_length(self) -> Run:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


class Evaluate(_Keys):
    """The section `evaluate`."""

    train: dict[str, Any]
    test: dict[str, Any]
    view: dict[str, Any]
    probes: dict[str, dict[str, Any]]
    network: str = "auto"
    layers: int = Field(0, ge=0)
    batch: int = Field(256, ge=1)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose text and parts are right."""

    name: str
    plugins: tuple[Path, ...]
    data: Spec
    views: Mapping[str, Spec]
    masks: Mapping[str, Spec]
    encoder: Spec
    predictor: Spec
    targets: Mapping[str, Spec]
    losses: Mapping[str, Spec]
    optim: Optim
    run: Run
    evaluate: Evaluate | None
    text: Text = field(repr=False, compare=False)

    def specs(self) -> Iterator[tuple[str, str, Spec]]:
        """Place, family and spec of every part."""
        return _specs({name: getattr(self, name) for name in (*ONE, *MANY)}, self.evaluate)


def load(name: str, sets: Sequence[str] = (), plugins: Sequence[Path] = ()) -> tuple[Recipe, Catalogue]:
    """Reads a recipe by name, file or run folder, changes it as `sets` say, and checks text and parts.

    Raises:
        RecipeError: everything wrong with it, at once.
        UserError: no recipe has that name.
        PluginError: a plugin could not be loaded.
    """
    path = find(name, plugins)
    text = yamltext.read(path, str(path) if path.parent != Path() else name)
    yamltext.put(text, sets)
    files = [*_plugin_files(text, path.parent), *(Path(file).resolve() for file in plugins)]
    installed = catalogue(files)
    return _recipe(text, installed, tuple(files)), installed


def find(name: str, plugins: Sequence[Path] = ()) -> Path:
    """The file of a recipe: a .yaml file, a run folder, or a name in a recipe folder of a plugin.

    Raises:
        UserError: there is none; names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    known = names(catalogue(plugins))
    if name in known:
        return known[name]
    close = did_you_mean(name, known)
    raise UserError(f"no recipe, file or run folder is called {name!r}{close}\n`sslzoo list recipes` lists all")


def names(installed: Catalogue) -> dict[str, Path]:
    """Every recipe that plugins ship, by name."""
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for folder in installed.recipes
        for path in sorted(folder.rglob("*.yaml"))
        if path.relative_to(folder).parts[0] != "clusters"
    }


def resolve(recipe: Recipe, installed: Catalogue) -> str:
    """The recipe as YAML with every default written out, under a header of versions; it trains again as it is."""
    tree: dict[str, Any] = {"name": recipe.name}
    if recipe.plugins:
        tree["plugins"] = [str(path) for path in recipe.plugins]
    for section in (*ONE, *MANY):
        family, spec = {**ONE, **MANY}[section], getattr(recipe, section)
        if section in ONE:
            tree[section] = _full(installed, family, section, spec)
        elif spec:
            tree[section] = {name: _full(installed, family, section, one) for name, one in spec.items()}
    tree |= {
        "optim": signature.plain(recipe.optim),
        "run": _without_none(signature.plain(recipe.run), "steps", "epochs"),
    }
    if recipe.evaluate is not None:
        tree["evaluate"] = _full_evaluate(installed, recipe.evaluate)
    order = {section: tree[section] for section in SECTIONS if section in tree}
    used = sorted({installed.parts[family][spec["use"]].plugin for _, family, spec in recipe.specs()})
    versions = [f"sslzoo {version('sslzoo')}", f"torch {version('torch')}"]
    versions += [f"plugin {name} {installed.plugins[name].version}" for name in used]
    header = "".join(f"# {line}\n" for line in (f"Resolved from {recipe.text.source} with", *versions))
    return header + yaml.safe_dump(order, sort_keys=False, width=110, default_flow_style=None)


def _recipe(text: Text, installed: Catalogue, files: tuple[Path, ...]) -> Recipe:
    problems = _sections(text.tree)
    tree = {name: _mapping(text.tree.get(name), name, problems) for name in (*ONE, *MANY, "optim", "run")}
    evaluate, found = None, text.tree.get("evaluate")
    settings: dict[str, Any] = {}
    for name, model in {"optim": Optim, "run": Run, "evaluate": Evaluate}.items():
        if name in text.tree and isinstance(text.tree[name], Mapping):
            settings[name], wrong = signature.validate(model, text.tree[name], name, f"the section {name}")
            problems += wrong
    if found and settings.get("evaluate"):
        evaluate = Evaluate.model_construct(**settings["evaluate"])
    for place, family, spec in _specs(tree, evaluate):
        problems += _check_part(installed, family, place, spec)
    for name, spec in tree["losses"].items():
        problems += _check_owners(f"losses.{name}", spec, tree["targets"])
    if problems:
        raise RecipeError(text.source, [_placed(problem, text) for problem in problems])
    settings = {name: model.model_construct(**settings[name]) for name, model in (("optim", Optim), ("run", Run))}
    parts = {name: tree[name] for name in (*ONE, *MANY)}
    return Recipe(str(text.tree["name"]), files, **parts, **settings, evaluate=evaluate, text=text)


def _sections(tree: Mapping[str, Any]) -> list[Problem]:
    known = ", ".join(SECTIONS)
    unknown = [name for name in tree if name not in SECTIONS]
    absent = [name for name in NEEDED if name not in tree]
    found = [Problem(name, f"no such section{did_you_mean(name, SECTIONS)}\nsections: {known}") for name in unknown]
    return found + [Problem(name, f"this section is missing\nsections: {known}") for name in absent]


def _mapping(value: Any, name: str, problems: list[Problem]) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    problems.append(Problem(name, f"found {value!r}; a mapping is wanted"))
    return {}


def _specs(tree: Mapping[str, Any], evaluate: Evaluate | None) -> Iterator[tuple[str, str, Spec]]:
    for section, family in ONE.items():
        if tree[section]:
            yield section, family, tree[section]
    for section, family in MANY.items():
        for name, spec in tree[section].items():
            yield f"{section}.{name}", family, spec
    if evaluate is not None:
        yield "evaluate.train", "datasets", evaluate.train
        yield "evaluate.test", "datasets", evaluate.test
        yield "evaluate.view", "views", evaluate.view
        for name, spec in evaluate.probes.items():
            yield f"evaluate.probes.{name}", "probes", spec


def _check_part(installed: Catalogue, family: str, place: str, spec: Any) -> list[Problem]:
    if not isinstance(spec, Mapping) or "use" not in spec:
        return [Problem(place, f"found {spec!r}; a {singular(family)} is wanted: {{use: NAME, ...}}")]
    parts = installed.parts[family]
    if spec["use"] not in parts:
        return [Problem(f"{place}.use", missing(family, spec["use"], parts))]
    part = parts[spec["use"]]
    own, engine = split_keys(spec, place)
    who = f"{part.name!r} (plugin {part.plugin} {part.version})"
    problems = signature.validate(signature.keys_of(part.make), own, place, who)[1]
    model = _engine_model(place)
    if model is not None:
        problems += signature.validate(model, engine, place, who)[1]
    return problems


def _check_owners(place: str, spec: Any, targets: Mapping[str, Any]) -> list[Problem]:
    """Whose signals a loss reads is known from the text alone."""
    problems = []
    for side in ("predict", "target"):
        name = spec.get(side) if isinstance(spec, Mapping) else None
        owner = name.split(".")[0] if isinstance(name, str) else "predictor"
        if owner not in {"predictor", "encoder", *targets}:
            text = f"reads {name!r}, but no target generator is called {owner!r}{did_you_mean(owner, targets)}"
            there = f"there is: {', '.join(targets)}" if targets else "there is none"
            problems.append(Problem(f"{place}.{side}", f"{text}\n{there}"))
    return problems


def _engine_model(place: str) -> type[_Keys] | None:
    return ENGINE_KEYS.get(place.split(".")[0])


def split_keys(spec: Spec, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A spec's keys for the part, and those for the engine."""
    model = _engine_model(place)
    engine = {} if model is None else {key: value for key, value in spec.items() if key in model.model_fields}
    return {key: value for key, value in spec.items() if key not in engine and key != "use"}, engine


def _placed(problem: Problem, text: Text) -> Problem:
    return Problem(problem.place, problem.message, problem.line or text.line(problem.place))


def _plugin_files(text: Text, folder: Path) -> list[Path]:
    listed = text.tree.get("plugins") or []
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise RecipeError(text.source, [Problem("plugins", f"found {listed!r}; a list of files", text.line("plugins"))])
    try:
        return [(folder / signature.expand(Path(one))).resolve() for one in listed]
    except ValueError as error:
        raise RecipeError(text.source, [Problem("plugins", str(error), text.line("plugins"))]) from error


def _full(installed: Catalogue, family: str, place: str, spec: Spec) -> dict[str, Any]:
    own, engine = split_keys(spec, place)
    model = signature.keys_of(installed.parts[family][spec["use"]].make)
    given = {key: own.get(key, field.default) for key, field in model.model_fields.items()}
    engine_model = _engine_model(place)
    if engine_model is not None:
        given |= {key: engine.get(key, field.default) for key, field in engine_model.model_fields.items()}
    return {"use": spec["use"]} | signature.plain(given)


def _full_evaluate(installed: Catalogue, evaluate: Evaluate) -> dict[str, Any]:
    full = signature.plain(evaluate)
    for name, family in (("train", "datasets"), ("test", "datasets"), ("view", "views")):
        full[name] = _full(installed, family, "evaluate", getattr(evaluate, name))
    full["probes"] = {name: _full(installed, "probes", "evaluate", spec) for name, spec in evaluate.probes.items()}
    return full


def _without_none(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None or key not in keys}
