"""What does a recipe say? YAML to a Recipe: sections known, parts installed, keys and types right.

The first two of three passes of validation: text and parts. The third, wiring, is `fit.check`. Every pass collects
all its problems before it raises.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic.fields import FieldInfo
from torch import nn

from sslzoo.errors import (
    Problem,
    RecipeError,
    UserError,
    did_you_mean,
    did_you_mean_beside,
    is_no_run,
    printable,
    shown,
)
from sslzoo.keys import Free
from sslzoo.plugins import Catalogue, catalogue, missing, singular
from sslzoo.recipe import signature, yamltext
from sslzoo.recipe.schedule import Duration, Schedule
from sslzoo.recipe.sections import ENGINE_KEYS, Evaluate, Factors, OptimKeys, Run, Start
from sslzoo.recipe.signature import Keys
from sslzoo.recipe.yamltext import Text

Spec = Mapping[str, Any]  # {use: NAME, key: value, ...}

ONE = {
    "data": "datasets",
    "encoder": "encoders",
    "predictor": "predictors",
    "optim": "optimizers",
}  # sections that are one part
MANY = {"views": "views", "masks": "masks", "targets": "targets", "losses": "losses"}  # sections of named parts
NEEDED = ("name", "data", "views", "encoder", "predictor", "losses", "optim", "run")
SECTIONS = ("name", "plugins", "data", "views", "masks", "encoder", "predictor", "targets", "losses", "optim", "run")
SECTIONS += ("start", "evaluate")
SETTINGS: dict[str, type[Keys]] = {"run": Run, "start": Start, "evaluate": Evaluate}  # sections that are no parts
GROUPS = "optim.groups"
OPTIMIZER = "adamw"  # if `optim` says no `use`
_NAME = re.compile(r"[^\W_][\w.+=-]{0,99}")  # of a run: one folder's name, and of no other folder
_ENTRY = re.compile(r"[^\W_][\w-]{0,63}")  # of a group, target generator or loss: one word of a dotted place


@dataclass(frozen=True)
class Recipe:
    """A recipe whose text and parts are right."""

    name: str
    plugins: Annotated[tuple[Path, ...], Free()]
    data: Spec
    views: Mapping[str, Spec]
    masks: Mapping[str, Spec]
    encoder: Spec
    predictor: Spec
    targets: Mapping[str, Spec]
    losses: Mapping[str, Spec]
    optim: Spec
    run: Run
    start: Start | None
    evaluate: Annotated[Evaluate | None, Free()]
    text: Text = field(repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Where a run of this recipe lies, unless told otherwise."""
        return Path("runs") / self.name

    @property
    def optim_keys(self) -> OptimKeys:
        """What the engine reads of the section `optim`."""
        return OptimKeys(**split_keys(self.optim, "optim")[1])

    def specs(self) -> Iterator[tuple[str, str, Spec]]:
        """Place, family and spec of every part that stands in a section."""
        return _specs({name: getattr(self, name) for name in (*ONE, *MANY)}, self.evaluate)

    def parts(self, installed: Catalogue) -> Iterator[tuple[str, str, Spec]]:
        """Place, family and spec of every part, those that stand in other parts among them."""
        return _with_held(installed, self.specs())


_FREE_SECTIONS = [
    name
    for name, hint in typing.get_type_hints(Recipe, include_extras=True).items()
    if any(isinstance(mark, Free) for mark in getattr(hint, "__metadata__", ()))
]


@dataclass(frozen=True)
class Key:
    """A key of a resolved recipe: its place, what it is, and how it is declared."""

    place: tuple[str, ...]
    value: Any
    declared: FieldInfo | None = None  # None for what every recipe and every part has: name, use

    @property
    def default(self) -> Any:
        """What it is when it is left out, as it stands in YAML; None if it may not be."""
        if self.place == ("optim", "use"):
            return OPTIMIZER
        return None if self.declared is None or self.declared.is_required() else signature.plain(self.declared.default)

    @property
    def free(self) -> bool:
        """Whether it may change when a run is resumed."""
        marks = self.declared.metadata if self.declared else []
        return in_free_section(self.place) or any(isinstance(mark, Free) for mark in marks)


def in_free_section(place: tuple[str, ...]) -> bool:
    """Whether everything in the section of this place may change when a run is resumed."""
    return place[0] in _FREE_SECTIONS


def load(name: str, sets: Sequence[str] = (), plugins: Sequence[Path] = ()) -> tuple[Recipe, Catalogue]:
    """Reads a recipe by name, file or run folder, changes it as `sets` say, and checks text and parts.

    Raises:
        RecipeError: everything wrong with it, at once.
        UserError: no recipe has that name.
        PluginError: a plugin could not be loaded.
    """
    path = find(name, plugins)
    text = yamltext.read(path, str(path) if path.parent != Path() else name)
    _put(text, sets)
    listed = [*_plugin_files(text, path.parent), *(Path(file).resolve() for file in plugins)]
    files = list(dict.fromkeys(listed))  # named twice is no other plugin
    installed = catalogue(files)
    return _recipe(text, installed, tuple(files)), installed


def load_run(folder: Path, sets: Sequence[str] = (), plugins: Sequence[Path] = ()) -> tuple[Recipe, Catalogue]:
    """The recipe of a run folder, as `load`; raises UserError where it holds none."""
    if not (folder / "recipe.yaml").is_file():
        raise is_no_run(folder, "is not a run folder: it holds no recipe.yaml")
    return load(str(folder), sets, plugins)


def change(recipe: Recipe, installed: Catalogue, sets: Sequence[str]) -> Recipe:
    """The recipe changed as by `--set`.

    Raises:
        RecipeError: everything wrong with it then.
    """
    text = Text(recipe.text.source, yaml.safe_load(resolve(recipe, installed)), dict(recipe.text.lines))
    _put(text, sets)
    return _recipe(text, installed, recipe.plugins)


def _put(text: Text, sets: Sequence[str]) -> None:
    """As `yamltext.put`; a pattern of `optim.groups` whose dots part it into names is told."""
    for assignment, place, _ in yamltext.assigned(sets):
        names = yamltext.names(place)
        if ".".join(names[:2]) == GROUPS and len(names) > 3 and names[3] not in Factors.model_fields:
            ends = next((at for at, name in enumerate(names) if at > 3 and name in Factors.model_fields), len(names))
            quoted = ".".join((GROUPS, f'"{".".join(names[2:ends])}"', *names[ends:]))
            problem = Problem(f"--set {assignment}", f"a pattern that holds dots stands in quotes: {quoted}")
            raise RecipeError(text.source, [problem])
    yamltext.put(text, sets)


def find(name: str, plugins: Sequence[Path] = ()) -> Path:
    """The file of a recipe: a .yaml file, a run folder, or a name in a recipe folder of a plugin.

    Raises:
        UserError: there is none; names the nearest.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
        if (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
    except (OSError, ValueError) as error:  # a name too long for a file, or with a NUL, or a folder without access
        raise UserError(f"no recipe, file or run folder is called {shown(name)}: {error}") from error
    installed = catalogue(plugins)
    known = names(installed)
    if name in known:
        return known[name]
    if name in studies(installed):
        raise UserError(f"{name} is a study, which compares recipes: `sslzoo compare {name}` runs it")
    if path.is_dir() and path.parent != Path():
        raise is_no_run(path, "is a folder that holds no recipe.yaml")
    beside = did_you_mean_beside(path) if "/" in name or path.suffix in (".yaml", ".yml") else ""
    close = beside or did_you_mean(name, known)
    raise UserError(f"no recipe, file or run folder is called {shown(name)}{close}\n`sslzoo list recipes` lists all")


def names(installed: Catalogue) -> dict[str, Path]:
    """Every recipe that plugins ship, by name."""
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for folder in installed.recipes
        for path in sorted(folder.rglob("*.yaml"))
        if path.relative_to(folder).parts[0] not in ("clusters", "studies")
    }


def studies(installed: Catalogue) -> dict[str, Path]:
    """Every study that plugins ship, by name."""
    return {
        str(path.relative_to(folder / "studies").with_suffix("")): path
        for folder in installed.recipes
        for path in sorted((folder / "studies").rglob("*.yaml"))
    }


def resolve(recipe: Recipe, installed: Catalogue) -> str:
    """The recipe as YAML with every default written out, under a header of versions; it trains again as it is."""
    tree: dict[str, Any] = {}
    for key in keys(recipe, installed):
        if key.value is not None or key.place not in (("run", "steps"), ("run", "epochs")):
            *way, last = key.place
            here = tree
            for name in way:
                here = here.setdefault(name, {})
            here[last] = key.value
    order = {section: tree[section] for section in SECTIONS if section in tree}
    lines = (f"{name} {number}" for name, number in versions(recipe, installed).items())
    # A path may hold line breaks, and bytes that are no UTF-8; a comment ends with its line.
    said = (printable(line).replace("\n", "\\n") for line in (f"Resolved from {recipe.text.source} with", *lines))
    header = "".join(f"# {line}\n" for line in said)
    return header + yamltext.dumped(order, default_flow_style=None, width=110)


def versions(recipe: Recipe, installed: Catalogue) -> dict[str, str]:
    """Of sslzoo, torch and every plugin whose parts the recipe uses."""
    found = {name: version(name) for name in ("sslzoo", "torch")}
    return found | {f"plugin {name}": number for name, number in plugin_versions(recipe, installed).items()}


def plugin_versions(recipe: Recipe, installed: Catalogue) -> dict[str, str]:
    """Of every plugin whose parts the recipe uses, by its name."""
    used = sorted({installed.parts[family][spec["use"]].plugin for _, family, spec in recipe.parts(installed)})
    return {name: str(installed.plugins[name].version) for name in used}


def keys(recipe: Recipe, installed: Catalogue) -> Iterator[Key]:
    """Every key that the recipe may give, given or default, in the order they are written."""
    yield Key(("name",), recipe.name)
    if recipe.plugins:
        yield Key(("plugins",), [str(path) for path in recipe.plugins])
    for place, family, spec in recipe.specs():
        yield from _part_keys(installed, family, tuple(place.split(".")), spec)
    for name in SETTINGS:
        section = getattr(recipe, name)
        for key, declared in type(section).model_fields.items() if section is not None else ():
            if name != "evaluate" or key not in ("train", "test", "view", "augment", "probes"):
                yield Key((name, key), signature.plain(getattr(section, key)), declared)


def _part_keys(installed: Catalogue, family: str, place: tuple[str, ...], spec: Spec) -> Iterator[Key]:
    yield Key((*place, "use"), spec["use"])
    make = installed.parts[family][spec["use"]].make
    models, held = [signature.keys_of(make), _engine_model(place)], list(signature.held(make, spec))
    for model in (model for model in models if model is not None):
        for name, declared in model.model_fields.items():
            inner = {one[1]: one for one in held if one[0] == name}
            for entry, (_, _, kind, within) in inner.items():
                yield from _part_keys(installed, kind, (*place, name, entry), within)
            if not inner:
                yield Key((*place, name), signature.plain(spec.get(name, declared.default)), declared)


def _recipe(text: Text, installed: Catalogue, files: tuple[Path, ...]) -> Recipe:
    """Checks sections, then their keys and parts, then what parts say of each other; tells everything at once."""
    tree, problems = text.tree, _sections(text.tree)
    sound = {name: tree[name] for name in (*ONE, *MANY) if isinstance(tree.get(name), dict)}
    if "optim" in sound:
        sound["optim"] = {"use": OPTIMIZER} | sound["optim"]
    settings, wrong = _settings(tree)
    problems += wrong
    parts = {name: sound.get(name, {}) for name in (*ONE, *MANY)}
    for place, family, spec in _with_held(installed, _specs(parts, settings.get("evaluate"))):
        problems += _check_part(installed, family, place, spec)
    for name, spec in parts["losses"].items():
        problems += _check_owners(f"losses.{name}", spec, parts["targets"])
    if problems:
        raise text.error(problems)
    recipe = Recipe(str(tree["name"]), files, **parts, text=text, **{"start": None, "evaluate": None, **settings})
    problems = list(_warmups(recipe, installed))
    if problems:
        raise text.error(problems)
    return recipe


def _sections(tree: Mapping[str, Any]) -> list[Problem]:
    """Sections are known, there, filled, and of plain names."""
    known = ", ".join(SECTIONS)
    unknown = [name for name in tree if name not in SECTIONS]
    found = [Problem(name, f"no such section{did_you_mean(name, SECTIONS)}\nsections: {known}") for name in unknown]
    absent = [name for name in NEEDED if name not in tree]
    found += [Problem(name, f"this section is missing\nsections: {known}") for name in absent]
    for name in (*ONE, *MANY, *SETTINGS):
        if name in tree and (tree[name] is not None or name in NEEDED):
            if not isinstance(tree[name], dict):
                found.append(Problem(name, f"found {shown(tree[name])}; a mapping is wanted"))
            elif not tree[name] and name in NEEDED:
                found.append(Problem(name, "this section is empty"))
    return found + _names(tree)


def _names(tree: Mapping[str, Any]) -> list[Problem]:
    """The run's name is one of a folder; those of groups, target generators and losses are words of a place."""
    found, name = [], tree.get("name")
    if "name" in tree and (isinstance(name, bool) or not _NAME.fullmatch(str(name)) or not isinstance(name, str | int)):
        plain = "at most 100 letters, digits and . _ - + =, a letter or digit first"
        found.append(Problem("name", f"found {shown(name)}; a plain name is wanted, for a folder: {plain}"))
    evaluate = tree.get("evaluate")
    probes = evaluate.get("probes") if isinstance(evaluate, Mapping) else None
    for section, entries in {**{name: tree.get(name) for name in MANY}, "evaluate.probes": probes}.items():
        for entry in entries if isinstance(entries, Mapping) else ():
            found += _misnamed(section, entry)
    return found


def _misnamed(section: str, entry: str) -> list[Problem]:
    if _ENTRY.fullmatch(entry) and not hasattr(nn.ModuleDict(), entry) and entry != "student":
        return []
    plain = "letters, digits, _ and -, a letter or digit first, and no word of the engine's own"
    return [Problem(f"{section}.{entry}", f"found {shown(entry)}; a plain name is wanted: {plain}")]


def _settings(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The sections that are no parts."""
    found, problems = {}, []
    for name, model in SETTINGS.items():
        if isinstance(tree.get(name), dict):
            values, wrong = signature.validate(model, tree[name], name, f"the section {name}")
            problems += wrong
            if values:
                found[name] = model.model_construct(**values)
    return found, problems


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
        if evaluate.augment is not None:
            yield "evaluate.augment", "views", evaluate.augment
        for name, spec in evaluate.probes.items():
            yield f"evaluate.probes.{name}", "probes", spec


def _with_held(installed: Catalogue, specs: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """These parts, each followed by those that stand in its keys, if it is known which they are."""
    for place, family, spec in specs:
        yield place, family, spec
        part = installed.parts[family].get(str(spec.get("use"))) if isinstance(spec, Mapping) else None
        if part is not None:
            inner = signature.held(part.make, spec)
            yield from _with_held(installed, ((f"{place}.{key}.{name}", kind, one) for key, name, kind, one in inner))


def _check_part(installed: Catalogue, family: str, place: str, spec: Any) -> list[Problem]:
    if not isinstance(spec, Mapping) or not isinstance(spec.get("use"), str):
        word = singular(family)
        word = f"an {word}" if word[0] in "aeo" else f"a {word}"
        return [Problem(place, f"found {shown(spec)}; {word} is wanted: {{use: NAME, ...}}")]
    parts = installed.parts[family]
    if spec["use"] not in parts:
        return [Problem(f"{place}.use", missing(family, spec["use"], parts))]
    part = parts[spec["use"]]
    own, engine = split_keys(spec, place)
    model, theirs = signature.keys_of(part.make), _engine_model(place.split("."))
    taken = [name for name in model.model_fields if name == "use" or (theirs and name in theirs.model_fields)]
    if taken:
        text = f"{part.label} has a key {taken[0]!r}, which is the engine's own here; the plugin must call it otherwise"
        return [Problem(place, text)]
    others = [] if theirs is None else list(theirs.model_fields)
    problems = signature.validate(model, own, place, part.label, others)[1]
    problems += [one for key, name, *_ in signature.held(part.make, spec) for one in _misnamed(f"{place}.{key}", name)]
    if theirs is not None:
        problems += signature.validate(theirs, engine, place, part.label, list(model.model_fields))[1]
    return problems


def _check_owners(place: str, spec: Any, targets: Mapping[str, Any]) -> list[Problem]:
    """Whose signals a loss reads, and that it compares two, is known from the text alone."""
    problems, given = [], spec if isinstance(spec, Mapping) else {}
    sides = {side: given.get(side) for side in ("predict", "target")}
    for side, name in sides.items():
        owner = name.split(".")[0] if isinstance(name, str) else "predictor"
        if owner not in {"predictor", "encoder", *targets}:
            close = did_you_mean(owner, targets)
            text = f"reads {shown(name)}, but no target generator is called {shown(owner)}{close}"
            there = f"there is: {', '.join(targets)}" if targets else "there is none"
            problems.append(Problem(f"{place}.{side}", f"{text}\n{there}"))
    if sides["predict"] == sides["target"] and isinstance(sides["target"], str):
        problems.append(Problem(f"{place}.target", f"{sides['target']} is what is predicted: it is always right"))
    return problems


def _warmups(recipe: Recipe, installed: Catalogue) -> Iterator[Problem]:
    """Warm-ups that the run does not reach the end of, as far as the text tells: steps in steps, epochs in epochs."""
    for place, warm in warmups(recipe, installed):
        length = recipe.run.steps if warm.unit == "steps" else recipe.run.epochs
        if length is not None and warm.amount > length:
            yield Problem(place, f"a warm-up of {warm} is longer than the run of {Duration(length, warm.unit)}")


def warmups(recipe: Recipe, installed: Catalogue) -> Iterator[tuple[str, Duration]]:
    """The warm-up of every schedule that has one."""
    for place, value in schedules(recipe, installed):
        if isinstance(value, Mapping) and "warmup" in value:
            yield place, Schedule.parse(value).warm


def turns(recipe: Recipe, installed: Catalogue, epoch_steps: int) -> Iterator[tuple[str, str, int]]:
    """What changes the course of schedules: places, what, and at which step of a run whose epochs have so many."""
    for place, value in schedules(recipe, installed):
        if isinstance(value, Mapping):
            yield from ((place, what, step) for what, step in Schedule.parse(value).turns(epoch_steps))


def schedules(recipe: Recipe, installed: Catalogue) -> Iterator[tuple[str, Any]]:
    """Every key that takes a schedule, defaults included, as it would stand in YAML."""
    for key in keys(recipe, installed):
        named = key.declared is not None and signature.names(key.declared.annotation, Schedule)
        if named and not isinstance(key.value, list | tuple):  # the key may take [low, high] instead
            yield ".".join(key.place), key.value
    for pattern, factors in recipe.optim.get("groups", {}).items():
        for name, value in factors.items():
            yield f"{GROUPS}.{pattern}.{name}", value


def _engine_model(place: Sequence[str]) -> type[Keys] | None:
    """What the engine takes beside a part's own keys; nothing of a part that stands in another."""
    return ENGINE_KEYS.get(place[0]) if len(place) <= 2 else None


def split_keys(spec: Spec, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A spec's keys for the part, and those for the engine."""
    model = _engine_model(place.split("."))
    engine = {} if model is None else {key: value for key, value in spec.items() if key in model.model_fields}
    return {key: value for key, value in spec.items() if key not in engine and key != "use"}, engine


def _plugin_files(text: Text, folder: Path) -> list[Path]:
    listed = text.tree.get("plugins") or []
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise text.error([Problem("plugins", f"found {shown(listed)}; a list of files")])
    try:
        return [(folder / signature.expand(Path(one))).resolve() for one in listed]
    except ValueError as error:
        raise text.error([Problem("plugins", str(error))]) from error
