"""How does a recipe become parts? Each is made from a seed of its own; whether they fit is asked by `recipe/fit.py`."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslzoo.contracts import CONTRACTS, Dataset, Signal, Student, lacking
from sslzoo.errors import Problem, RecipeError, UserError, did_you_mean
from sslzoo.plugins import Catalogue, Part
from sslzoo.recipe import signature
from sslzoo.recipe.recipe import Recipe, Spec, split_keys
from sslzoo.recipe.sections import GroupKeys, TermKeys
from sslzoo.rng import derive_seed
from sslzoo.run import optim
from sslzoo.run.data import Sources, Views
from sslzoo.step import CONTEXT, Method, Term


def make(installed: Catalogue, family: str, spec: Spec, *given: Any, place: str = "") -> Any:
    """One part from its spec, a mapping of `use` and its keys; `given` is what the engine gives its constructor.

    Raises:
        RecipeError: the part refused its keys, or a path names an environment variable that is not set.
    """
    part = installed.find(family, spec["use"])
    own, _ = split_keys(spec, place)
    model = signature.keys_of(part.make)
    place = place or family
    keys, problems = signature.validate(model, own, place, repr(part.name))
    who = part.label
    if not problems:
        try:
            made = construct(installed, part, keys, *given, place=place)
            absent = [written for _, written in lacking(made, CONTRACTS[family])] if family in CONTRACTS else []
            if not absent:
                return made
            hint = f"`sslzoo verify {family} {part.name}` says what its contract asks for"
            problems = [Problem(place, f"{who}: it has no {', no '.join(absent)}; {hint}")]
        except ValueError as error:
            problems = [Problem(place, f"{who}: {error}")]
        except UserError:
            raise
        except Exception as error:  # a plugin's own mistake, told as one
            problems = [Problem(place, f"{who} failed when it was made: {located(error)}")]
    raise RecipeError("recipe", problems)


def construct(installed: Catalogue, part: Part, keys: Mapping[str, Any], *given: Any, place: str) -> Any:
    """A part of keys that are right; the parts that stand in its keys are made first, of what it is given itself.

    Raises:
        RecipeError: some of those refused their keys.
    """
    problems: list[Problem] = []
    inner: dict[str, dict[str, Any]] = {}
    for key, name, family, spec in signature.held(part.make, keys):
        inner.setdefault(key, {})[name] = attempt(problems, installed, family, spec, f"{place}.{key}.{name}", *given)
    if problems:
        raise RecipeError("recipe", problems)
    return part.make(*given, **{name: signature.expand(value) for name, value in keys.items()} | inner)


def maker(installed: Catalogue, part: Part) -> Callable[..., Any]:
    """What makes a part as a recipe does, of what it is given and its keys: parts in those are made first."""

    @wraps(part.make, updated=())
    def make(*given: Any, **keys: Any) -> Any:
        return construct(installed, part, keys, *given, place=part.name)

    return make


def build(recipe: Recipe, installed: Catalogue) -> tuple[Method, Sources]:
    """Parts with their starting weights, on the CPU, and the sources of batches, data set opened.

    Each part starts from a seed of its own, so swapping one leaves the start of the others.

    Raises:
        RecipeError: a part refused its keys, or the data set cannot be opened.
    """
    method, sources = assemble(recipe, installed)
    return method, _opened(recipe, installed, sources, [])


def build_sources(recipe: Recipe, installed: Catalogue) -> Sources:
    """The sources of batches alone, data set opened; no network is built.

    Raises:
        RecipeError: a part refused its keys, or the data set cannot be opened.
    """
    problems: list[Problem] = []
    return _opened(recipe, installed, _sources(recipe, _maker(recipe, installed, problems)), problems)


def _opened(recipe: Recipe, installed: Catalogue, sources: Sources, problems: list[Problem]) -> Sources:
    data = attempt(problems, installed, "datasets", recipe.data, "data") if recipe.data else sources.data
    if problems:
        raise recipe.text.error(problems)
    return replace(sources, data=data)


def build_optimizer(recipe: Recipe, installed: Catalogue, method: Method) -> torch.optim.Optimizer:
    """The recipe's optimizer, over the parameters of a method that is on its device.

    Raises:
        RecipeError: it refused its keys.
    """
    groups = optim.groups(method, recipe.optim_keys)
    return make(installed, "optimizers", recipe.optim, groups, place="optim")


def build_method(recipe: Recipe, installed: Catalogue) -> Method:
    """Parts with their starting weights alone, on the device of the context; no data set is opened.

    Raises:
        RecipeError: a part refused its keys.
    """
    return assemble(recipe, installed)[0]


def assemble(recipe: Recipe, installed: Catalogue) -> tuple[Method, Sources]:
    """Every part but the data set and the optimizer, wired; no data set is opened.

    Raises:
        RecipeError: parts refused their keys, or a loss reads what nothing gives: all of it, as far as it can be known.
    """
    problems: list[Problem] = []
    part = _maker(recipe, installed, problems)
    sources = _sources(recipe, part)
    if not isinstance(encoder := part("encoders", recipe.encoder, "encoder"), nn.Module):
        raise recipe.text.error(problems)
    if not isinstance(predictor := part("predictors", recipe.predictor, "predictor", encoder), nn.Module):
        raise recipe.text.error(problems)
    student = Student(encoder, predictor)  # type: ignore[arg-type]
    targets = {name: part("targets", spec, f"targets.{name}", student) for name, spec in recipe.targets.items()}
    if problems:
        raise recipe.text.error(problems)
    signals = signals_of(student, targets)
    terms = {name: Term(**TermKeys(**split_keys(spec, "losses")[1]).__dict__) for name, spec in recipe.losses.items()}
    losses = {}
    for name, spec in recipe.losses.items():
        if terms[name].predict not in signals:
            problems.append(no_signal(f"losses.{name}.predict", terms[name].predict, signals))
        else:
            losses[name] = part("losses", spec, f"losses.{name}", signals[terms[name].predict])
    if problems:
        raise recipe.text.error(problems)
    return Method(student, targets, losses, terms), sources


Maker = Callable[..., Any]  # (family, spec, place, *given) -> a part, or None and a problem


def _maker(recipe: Recipe, installed: Catalogue, problems: list[Problem]) -> Maker:
    """Makes parts, each from a seed of its own."""

    def part(family: str, spec: Spec, place: str, *given: Any) -> Any:
        torch.manual_seed(derive_seed(recipe.run.seed, "init", place))
        return attempt(problems, installed, family, spec, place, *given)

    return part


def _sources(recipe: Recipe, part: Maker) -> Sources:
    views = {}
    with torch.device("cpu"):
        for name, spec in recipe.views.items():
            group = GroupKeys(**split_keys(spec, "views")[1])
            views[name] = Views(part("views", spec, f"views.{name}"), group.count, group.role)
        masks = {name: part("masks", spec, f"masks.{name}") for name, spec in recipe.masks.items()}
    return Sources(_NoData(), views, masks)


def attempt(problems: list[Problem], installed: Catalogue, family: str, spec: Spec, place: str, *given: Any) -> Any:
    """As `make`; where the part refuses, None, and what is wrong is added to `problems`."""
    try:
        return make(installed, family, spec, *given, place=place)
    except RecipeError as error:
        problems += error.problems
        return None


def signals_of(student: Student, targets: Mapping[str, Any]) -> dict[str, Signal]:
    """Every signal that losses may read, by the name recipes use: predictor.NAME, encoder.context, TARGET.NAME."""
    signals = {f"predictor.{name}": signal for name, signal in student.predictor.outputs.items()}
    signals[CONTEXT] = Signal("context", student.encoder.width)
    for name, target in targets.items():
        signals |= {f"{name}.{key}": signal for key, signal in target.outputs.items()}
    return signals


def no_signal(place: str, name: str, signals: Mapping[str, Any]) -> Problem:
    """How a signal that nothing gives is told."""
    close = did_you_mean(name, signals)
    return Problem(place, f"reads {name!r}, which nothing gives{close}\nsignals: {', '.join(signals)}")


class _NoData:
    """Stands where no data set was opened."""

    tasks: Mapping[str, int] = {}

    def __len__(self) -> int:
        raise RuntimeError("no data set was opened")

    def image(self, i: int) -> object:
        raise RuntimeError(f"no data set was opened, so there is no image {i}")

    def label(self, i: int) -> Mapping[str, int]:
        raise RuntimeError(f"no data set was opened, so there is no label {i}")


_: Dataset = _NoData()


def located(error: Exception) -> str:
    """An error with the file and line it arose in: the part's own, where it arose in torch on the part's behalf."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if not _of_torch(frame)), frames[-1])
    return f"{type(error).__name__}: {error}\nin {last.filename}, line {last.lineno}, {last.name}()"


def refuses(error: Exception) -> bool:
    """Whether a part raised this ValueError itself: words for a person, who need not know where the code stands."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, ValueError) and (last.line or "").startswith("raise ") and not _of_torch(last)


def _of_torch(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(str(Path(torch.__file__).parent))
