"""How does a recipe become parts, and do they fit? Builds them; checks the wiring; rehearses one step on nothing.

`check` is the third pass of validation: signals exist and agree, roles and masks suit, then one step forward and
backward on the meta device, where tensors have shapes and no numbers. It opens no data set.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.contracts import CONTRACTS, Batch, Dataset, Grid, Mask, Signal, Student, lacking, letters
from sslzoo.errors import Problem, RecipeError, RunError, UserError, did_you_mean
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe import shapes, signature
from sslzoo.recipe.recipe import GroupKeys, Recipe, Spec, TermKeys, split_keys, turns
from sslzoo.rng import derive_seed
from sslzoo.run import optim
from sslzoo.run.data import Sources, Views, draw_mask, fake_batch
from sslzoo.run.optim import trainable
from sslzoo.step import CONTEXT, Method, Term, compute_loss

DRY_IMAGES = 2  # images of the rehearsal, at the most
DRAWN_ROWS = 64  # masks are drawn for so many images at the most ...
DRAWN_TOGETHER = 512  # ... or so many, where masks depend on those they are drawn with
COUNTED_STEPS = 64  # for which masks are drawn, and whose mean the arithmetic is
LONG_EPOCH = 10**6  # steps


@dataclass(frozen=True)
class Flow:
    """What a rehearsed step showed."""

    rows: tuple[tuple[str, str, str], ...]  # part, shape, remark
    parameters: Mapping[str, int]
    flops: float  # of one image, forward and backward
    unused: tuple[str, ...]  # parameters that no gradient reaches
    width: int = 0  # of the encoder
    images: int = DRY_IMAGES  # whose shapes these are

    def __str__(self) -> str:
        wide = [max(len(row[column]) for row in self.rows) for column in (0, 1)]
        lines = [f"{name:<{wide[0]}}  {shape:<{wide[1]}}  {remark}".rstrip() for name, shape, remark in self.rows]
        if self.unused:
            lines.append(f"no gradient reaches {', '.join(self.unused)}")
        return "\n".join(lines)


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
            made = part.make(*given, **{name: signature.expand(value) for name, value in keys.items()})
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


def build(recipe: Recipe, installed: Catalogue) -> tuple[Method, Sources]:
    """Parts with their starting weights, on the CPU, and the sources of batches, data set opened.

    Each part starts from a seed of its own, so swapping one leaves the start of the others.

    Raises:
        RecipeError: a part refused its keys, or the data set cannot be opened.
    """
    problems: list[Problem] = []
    method, sources = _build(recipe, installed, problems)
    return method, _opened(recipe, installed, sources, problems)


def build_sources(recipe: Recipe, installed: Catalogue) -> Sources:
    """The sources of batches alone, data set opened; no network is built.

    Raises:
        RecipeError: a part refused its keys, or the data set cannot be opened.
    """
    problems: list[Problem] = []
    return _opened(recipe, installed, _sources(recipe, _maker(recipe, installed, problems)), problems)


def _opened(recipe: Recipe, installed: Catalogue, sources: Sources, problems: list[Problem]) -> Sources:
    data = _attempt(problems, installed, "datasets", recipe.data, "data") if recipe.data else sources.data
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
    return _build(recipe, installed, [])[0]


def check(recipe: Recipe, installed: Catalogue) -> Flow:
    """Checks the wiring and rehearses a step.

    Raises:
        RecipeError: everything that does not fit, at once.
    """
    problems: list[Problem] = []
    with torch.device("meta"):
        method, sources = _build(recipe, installed, problems)
    if not problems:
        problems += [*_wiring(recipe, installed, method, sources), *_moving(recipe, installed, method)]
    if problems:
        raise recipe.text.error(problems)
    return _rehearse(recipe, method, sources)


Maker = Callable[..., Any]  # (family, spec, place, *given) -> a part, or None and a problem


def _maker(recipe: Recipe, installed: Catalogue, problems: list[Problem]) -> Maker:
    """Makes parts, each from a seed of its own."""

    def one(family: str, spec: Spec, place: str, *given: Any) -> Any:
        torch.manual_seed(derive_seed(recipe.run.seed, "init", place))
        return _attempt(problems, installed, family, spec, place, *given)

    return one


def _sources(recipe: Recipe, one: Maker) -> Sources:
    views = {}
    with torch.device("cpu"):
        for name, spec in recipe.views.items():
            group = GroupKeys(**split_keys(spec, "views")[1])
            views[name] = Views(one("views", spec, f"views.{name}"), group.count, group.role)
        masks = {name: one("masks", spec, f"masks.{name}") for name, spec in recipe.masks.items()}
    return Sources(_NoData(), views, masks)


def _build(recipe: Recipe, installed: Catalogue, problems: list[Problem]) -> tuple[Method, Sources]:
    one = _maker(recipe, installed, problems)
    sources = _sources(recipe, one)
    if not isinstance(encoder := one("encoders", recipe.encoder, "encoder"), nn.Module):
        raise recipe.text.error(problems)
    if not isinstance(predictor := one("predictors", recipe.predictor, "predictor", encoder), nn.Module):
        raise recipe.text.error(problems)
    student = Student(encoder, predictor)  # type: ignore[arg-type]
    targets = {name: one("targets", spec, f"targets.{name}", student) for name, spec in recipe.targets.items()}
    if problems:
        raise recipe.text.error(problems)
    signals = _signals(student, targets)
    terms = {name: Term(**TermKeys(**split_keys(spec, "losses")[1]).__dict__) for name, spec in recipe.losses.items()}
    losses = {}
    for name, spec in recipe.losses.items():
        if terms[name].predict not in signals:
            problems.append(_no_signal(f"losses.{name}.predict", terms[name].predict, signals))
        else:
            losses[name] = one("losses", spec, f"losses.{name}", signals[terms[name].predict])
    if problems:
        raise recipe.text.error(problems)
    return Method(student, targets, losses, terms), sources


def _attempt(problems: list[Problem], installed: Catalogue, family: str, spec: Spec, place: str, *given: Any) -> Any:
    try:
        return make(installed, family, spec, *given, place=place)
    except RecipeError as error:
        problems += error.problems
        return None


def _signals(student: Student, targets: Mapping[str, Any]) -> dict[str, Any]:
    signals = {f"predictor.{name}": signal for name, signal in student.predictor.outputs.items()}
    signals[CONTEXT] = Signal("context", student.encoder.width)
    for name, target in targets.items():
        signals |= {f"{name}.{key}": signal for key, signal in target.outputs.items()}
    return signals


def _no_signal(place: str, name: str, signals: Mapping[str, Any]) -> Problem:
    close = did_you_mean(name, signals)
    return Problem(place, f"reads {name!r}, which nothing gives{close}\nsignals: {', '.join(signals)}")


def _wiring(recipe: Recipe, installed: Catalogue, method: Method, sources: Sources) -> Iterator[Problem]:
    signals = _signals(method.student, dict(method.targets.items()))
    masked = {name: sources.views[name] for name in recipe.masks if name in sources.views}
    for name in recipe.masks:
        if name not in sources.views:
            close = did_you_mean(name, sources.views)
            yield Problem(
                f"masks.{name}", f"no group of views is called {name!r}{close}\nviews: {', '.join(sources.views)}"
            )
    for name in sources.views:
        yield from _grid_and_masks(name, recipe, installed, method, sources)
    names = [name for name, _ in trainable(method)]
    for pattern in recipe.optim_keys.groups:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:: max(1, len(names) // 4)])
            yield Problem(f"optim.groups.{pattern}", f"matches no parameter that learns; they are called {some}, ...")
    yield from _idle(recipe, method)
    ragged = [name for name in masked if sources.masks[name].ragged]
    if ragged and not method.student.encoder.ragged:
        yield Problem(f"masks.{ragged[0]}", "contexts differ in length, which this encoder does not accept")
    for name in {"encoder", "predictor"} & set(method.targets):
        yield Problem(f"targets.{name}", f"{name!r} is the name of the {name}'s own signals; choose another")
    readers = {views.role for views in sources.views.values()}
    if not readers & {"context", "both"}:
        yield Problem("views", "no group is read by the student: give one the role context or both")
    if (recipe.run.micro or recipe.run.batch) < recipe.run.batch and (related := _relating(method)):
        yield Problem(
            "run.micro", f"{related} relates all images of a batch, so a batch cannot be split into micro-batches"
        )
    for name, term in method.terms.items():
        yield from _term(name, term, signals, method, masked)


def _grid_and_masks(
    name: str, recipe: Recipe, installed: Catalogue, method: Method, sources: Sources
) -> Iterator[Problem]:
    """Whether images of a group make a grid, and masks can be drawn for it: all along the run, and where they turn."""
    views, place = sources.views[name], f"views.{name}"
    try:
        grid = method.student.encoder.grid(views.view.size)
        place = f"masks.{name}"
        for at in _moments(recipe, installed, name) if name in sources.masks else ():
            _draw(recipe, sources, name, grid, at)
    except (ValueError, RunError) as error:
        yield Problem(place, str(error))
    except Exception as error:  # a plugin's own mistake, told as one
        yield Problem(place, f"failed on images of {views.view.size}: {located(error)}")


def _spread(recipe: Recipe) -> list[Progress]:
    """Moments all along the run, its first and its last among them.

    How many steps an epoch has is not known without the data; it is taken so that a run reaches as much as it may of
    its schedules: one, or in a run of epochs very many.
    """
    epoch_steps = 1 if recipe.run.steps else LONG_EPOCH
    steps = max(1, recipe.run.length(epoch_steps))
    return [Progress(n * (steps - 1) // (COUNTED_STEPS - 1), steps, epoch_steps) for n in range(COUNTED_STEPS)]


def _moments(recipe: Recipe, installed: Catalogue, name: str) -> list[Progress]:
    """Moments for which masks of a group must be drawn: these, and around each turn of its schedules."""
    found = _spread(recipe)
    steps, epoch_steps = found[0].steps, found[0].epoch_steps
    own = [step for place, _, step in turns(recipe, installed, epoch_steps) if place.startswith(f"masks.{name}.")]
    around = sorted({step + more for step in own for more in (-1, 0)})
    return [*found, *(Progress(step, steps, epoch_steps) for step in around if 0 <= step < steps)]


def _draw(recipe: Recipe, sources: Sources, name: str, grid: Grid, at: Progress) -> Mask:
    seed, rows = derive_seed(recipe.run.seed, name), range(_rows_drawn(recipe, sources))
    return draw_mask(sources.masks[name], grid, seed, at, rows, sources.views[name].count)


def _moving(recipe: Recipe, installed: Catalogue, method: Method) -> Iterator[Problem]:
    """Whether the optimizer takes its keys, and weights can be split over ranks where that is asked for."""
    if recipe.optim_keys.layer_decay < 1 and not optim.block_numbers(method.student.encoder):
        text = f"found {recipe.optim_keys.layer_decay:g}, but this encoder has no blocks with parameters: accepted is 1"
        yield Problem("optim.layer_decay", text)
    groups = optim.groups(method, recipe.optim_keys)
    for group in groups:  # fused kernels refuse meta tensors
        group["params"] = [torch.zeros([1] * parameter.ndim) for parameter in group["params"]]
    try:
        optimizer = make(installed, "optimizers", recipe.optim, groups, place="optim")
    except RecipeError as error:
        yield from error.problems
        return
    if recipe.run.shard > 1:
        if not getattr(optimizer, "shards", False):
            yield Problem("run.shard", f"the optimizer {recipe.optim['use']} needs whole weights: accepted is 1")
        for name, parameter in trainable(method):
            if not parameter.ndim:
                yield Problem("run.shard", f"{name} is a single number (0-d), which cannot be split: give it shape [1]")


def _idle(recipe: Recipe, method: Method) -> Iterator[Problem]:
    """A run in which nothing learns: every loss weighs nothing, or no parameter moves."""
    if method.terms and all(term.weight.is_zero for term in method.terms.values()):
        place = f"losses.{next(iter(method.terms))}.weight"
        yield Problem(place, "nothing learns: every loss has the weight 0 at every step; accepted is another for one")
    keys = recipe.optim_keys
    if keys.lr.is_zero:
        yield Problem("optim.lr", "nothing learns: the learning rate is 0 at every step")
    elif all(any(one.lr.is_zero for one in group["factors"]) for group in optim.groups(method, keys)):
        still = next(pattern for pattern, one in keys.groups.items() if one.lr.is_zero)
        yield Problem(f"optim.groups.{still}.lr", "nothing learns: every parameter's learning rate is multiplied by 0")


def _relating(method: Method) -> str:
    """The first module that relates the images of a batch to each other (losses, batch norms), by its place."""
    found = (name for name, module in method.named_modules() if getattr(module, "whole_batch", False))
    return next(found, "").removeprefix("student.")


def _term(
    name: str, term: Term, signals: Mapping[str, Any], method: Method, masked: Mapping[str, Views]
) -> Iterator[Problem]:
    place, loss = f"losses.{name}", method.losses[name]
    predicted = signals[term.predict]
    read = masked if predicted.kind == "patch" else [views for views in masked.values() if views.role != "target"]
    if predicted.kind != "image" and not read:
        what = "hidden patches" if predicted.kind == "patch" else "patches that the student saw"
        yield Problem(f"{place}.predict", f"{term.predict} speaks of {what}, but there is no section masks")
    if term.target is None:
        if loss.needs_target:
            yield Problem(place, "this loss needs the key target")
        return
    if term.target not in signals:
        yield _no_signal(f"{place}.target", term.target, signals)
        return
    wanted = signals[term.target]
    if (wanted.kind, wanted.width) != (predicted.kind, predicted.width):
        yield Problem(
            place,
            f"{term.predict} is {predicted.kind} of width {predicted.width}, "
            f"{term.target} is {wanted.kind} of width {wanted.width}",
        )
    if wanted.ids != getattr(loss, "class_ids", False):
        found, read = ("class ids", "rows of numbers") if wanted.ids else ("rows of numbers", "class ids")
        yield Problem(place, f"{term.target} holds {found}, but this loss reads {read} as its target")
    if wanted.kind == "patch" and not term.target.startswith("predictor."):
        for group, views in masked.items():
            if views.role != "both":
                yield Problem(
                    f"views.{group}.role", f"found {views.role}; a group with patch targets has the role both"
                )


def _rows_drawn(recipe: Recipe, sources: Sources) -> int:
    """Images whose masks are drawn together: the real micro-batch, where it matters and is not very large."""
    together = any(getattr(sampler, "batchwise", False) for sampler in sources.masks.values())
    most = DRAWN_TOGETHER if together else DRAWN_ROWS
    return min(recipe.run.micro or recipe.run.batch, recipe.run.batch, most)


def _typical(recipe: Recipe, method: Method, sources: Sources) -> tuple[Progress, float]:
    """The moment whose masks come nearest to the mean in arithmetic, and the mean over many draws in units of it.

    Arithmetic goes nearly as weights times tokens: the encoder's by patches seen, the predictor's by patches seen and
    asked for by each block; a teacher sees everything, forward only.
    """
    encoder, predictor = _count(method.student.encoder), _count(method.student.predictor)  # type: ignore[arg-type]
    teachers = sum(hasattr(target, "encoder") for target in method.targets.values())
    moments, grids = _spread(recipe), sources.grids(method.student.encoder)
    work = torch.ones(len(moments), dtype=torch.double)
    for name in sources.masks:
        whole = _rows_drawn(recipe, sources) * sources.views[name].count * math.prod(grids[name])
        for number, at in enumerate(moments):
            mask = _draw(recipe, sources, name, grids[name], at)
            seen, asked = mask.context.index.numel(), mask.target.index.numel()
            blocks = mask.target.index.shape[1]
            work[number] += encoder * seen + predictor * (seen * blocks + asked) + teachers * encoder * whole / 3
    number = int((work - work.mean()).abs().argmin())
    return moments[number], (work.mean() / work[number]).item()


def _rehearse(recipe: Recipe, method: Method, sources: Sources) -> Flow:
    drawn, seed = _rows_drawn(recipe, sources), recipe.run.seed
    images = min(DRY_IMAGES, drawn)
    typical, mean = _typical(recipe, method, sources)
    batch = fake_batch(sources, method.student.encoder, images, "meta", seed=seed, at=typical, drawn=drawn)
    at = Progress(0, 1)
    seen: dict[str, str] = {}
    with _shapes(method, seen), FlopCounterMode(display=False) as counter:
        try:
            loss, _ = compute_loss(method, batch, at)
            loss.backward()
        except shapes.WrongShape as wrong:
            raise recipe.text.error([Problem(seen["last"], str(wrong))]) from wrong
        except UserError:
            raise
        except Exception as error:  # a plugin's own mistake, whatever it raised
            where = seen.get("last", "the step")
            raise recipe.text.error([Problem(where, f"failed in a rehearsed step: {located(error)}")]) from error
    unused = tuple(name for name, parameter in trainable(method) if parameter.grad is None)
    counts = {name: _count(part) for name, part in _named(method).items()}
    rows, flops = tuple(_rows(recipe, batch, method, counts, seen)), counter.get_total_flops() / images * mean
    return Flow(rows, counts, flops, unused, method.student.encoder.width, images)


@contextmanager
def _shapes(method: Method, seen: dict[str, str]) -> Iterator[None]:
    """Notes the shapes that parts return, and which part was entered last."""
    hooks = []
    for name, part in _named(method).items():

        def enter(_module: nn.Module, _given: Any, name: str = name) -> None:
            seen["last"] = name

        def leave(module: nn.Module, given: Any, out: Any, name: str = name) -> None:
            seen["last"] = name
            shapes.check(name.split(".")[0], module, given, out)
            seen[name] = _shape_of(out)

        hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shape_of(out: Any) -> str:
    if isinstance(out, Mapping):
        return ", ".join(f"{name} {letters(value)}" for name, value in out.items())
    return letters(out.patches) if hasattr(out, "patches") else ""


def _named(method: Method) -> dict[str, nn.Module]:
    named: dict[str, nn.Module] = {"encoder": method.student.encoder, "predictor": method.student.predictor}  # type: ignore[dict-item]
    named |= {f"targets.{name}": target for name, target in method.targets.items()}
    return named | {f"losses.{name}": loss for name, loss in method.losses.items()}


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _rows(
    recipe: Recipe, batch: Batch, method: Method, counts: Mapping[str, int], seen: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    for name, group in batch.groups.items():
        grid = method.student.encoder.grid((group.pixels.shape[-2], group.pixels.shape[-1]))
        yield name, letters(group.pixels), f"grid {grid[0]} x {grid[1]}, read by {_READERS[group.role]}"
        if group.mask is not None:
            context, target = group.mask.context.index, group.mask.target.index
            use = recipe.masks[name]["use"]
            yield (
                f"  {use}",
                f"context {letters(context)}, target {letters(target)}",
                "lengths may differ from step to step",
            )
    specs = {"encoder": recipe.encoder, "predictor": recipe.predictor}
    specs |= {f"targets.{name}": spec for name, spec in recipe.targets.items()}
    for name, spec in specs.items():
        yield (
            f"{name.removeprefix('targets.')} {spec['use']}",
            seen.get(name, ""),
            f"{counts[name] / 1e6:.1f} M parameters",
        )
    for name, term in method.terms.items():
        arrow = term.predict if term.target is None else f"{term.predict} -> {term.target}"
        yield f"{name} {recipe.losses[name]['use']}", arrow, ""


_READERS = {"context": "the student", "target": "the teacher", "both": "both"}


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
    frames, torchs = traceback.extract_tb(error.__traceback__), str(Path(torch.__file__).parent)
    last = next((frame for frame in reversed(frames) if not frame.filename.startswith(torchs)), frames[-1])
    return f"{type(error).__name__}: {error}\nin {last.filename}, line {last.lineno}, {last.name}()"
