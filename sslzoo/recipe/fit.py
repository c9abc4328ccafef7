"""Do the parts of a recipe fit? Checks the wiring; then rehearses one step on nothing.

`check` is the third pass of validation: signals exist and agree, roles and masks suit, then one step forward and
backward on the meta device, where tensors have shapes and no numbers. It opens no data set, but where masks change by
epochs in a run of steps: only the data tell how far it comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sslzoo.contracts import Batch, Grid, Mask, Tokens, letters
from sslzoo.errors import Problem, RecipeError, RunError, UserError, did_you_mean
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe import shapes
from sslzoo.recipe.build import assemble, build_sources, located, make, no_signal, refuses, signals_of
from sslzoo.recipe.recipe import Recipe, turns
from sslzoo.rng import derive_seed
from sslzoo.run import optim
from sslzoo.run.data import Sources, Views, fake_batch
from sslzoo.run.masking import draw_mask
from sslzoo.run.networks import encoders
from sslzoo.run.optim import trainable
from sslzoo.step import Method, Term, compute_loss

DRY_IMAGES = 2  # images of the rehearsal, at the most
DRAWN_ROWS = 64  # masks are drawn for so many images at the most ...
DRAWN_TOGETHER = 512  # ... or so many, where masks depend on those they are drawn with
TRIED_STEPS = 64  # for which masks are drawn, to see that they can be
COUNTED = 0  # the step whose chance counted masks are of
COUNTED_STEPS = 256  # for which masks are drawn, and whose mean the arithmetic is
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
    patches: float = 0.0  # of one image that the student sees, over all its views and masks
    idle: tuple[str, ...] = ()  # what else serves nothing, in words

    @property
    def remarks(self) -> list[str]:
        """What a person may not have meant, though it can be trained."""
        return [*([f"no gradient reaches {', '.join(self.unused)}"] if self.unused else []), *self.idle]

    def __str__(self) -> str:
        wide = [max(len(row[column]) for row in self.rows) for column in (0, 1)]
        lines = [f"{name:<{wide[0]}}  {shape:<{wide[1]}}  {remark}".rstrip() for name, shape, remark in self.rows]
        return "\n".join([*lines, *self.remarks])


def check(recipe: Recipe, installed: Catalogue) -> Flow:
    """Checks the wiring and rehearses a step.

    Raises:
        RecipeError: everything that does not fit, at once.
    """
    with torch.device("meta"):
        method, sources = assemble(recipe, installed)
    problems = [*_wiring(recipe, installed, method, sources), *_moving(recipe, installed, method)]
    if problems:
        raise recipe.text.error(problems)
    return _rehearse(recipe, installed, method, sources)


def _wiring(recipe: Recipe, installed: Catalogue, method: Method, sources: Sources) -> Iterator[Problem]:
    signals = signals_of(method.student, dict(method.targets.items()))
    masked = {name: sources.views[name] for name in recipe.masks if name in sources.views}
    for name in recipe.masks:
        if name not in sources.views:
            close = did_you_mean(name, sources.views)
            yield Problem(
                f"masks.{name}", f"no group of views is called {name!r}{close}\nviews: {', '.join(sources.views)}"
            )
        elif sources.views[name].role == "target":
            text = "hides nothing: the student does not read this group, whose role is target"
            yield Problem(f"masks.{name}", f"{text}; accepted is a mask of a group with the role both or context")
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
            _draw(recipe, sources, name, grid, at, recipe.run.seed)
    except (ValueError, RunError) as error:
        yield Problem(place, str(error))
    except Exception as error:  # a plugin's own mistake, told as one
        yield Problem(place, f"failed on images of {views.view.size}: {located(error)}")


def _spread(recipe: Recipe, many: int, epoch_steps: int = 0) -> list[Progress]:
    """Moments all along the run, its first and its last among them.

    How many steps an epoch has is not known without the data; where it is not told, it is taken so that a run reaches
    as much as it may of its schedules: one, or in a run of epochs very many.
    """
    epoch_steps = epoch_steps or (1 if recipe.run.steps else LONG_EPOCH)
    steps = max(1, recipe.run.length(epoch_steps))
    return [Progress(n * (steps - 1) // (many - 1), steps, epoch_steps) for n in range(many)]


def _epoch_steps(recipe: Recipe, installed: Catalogue) -> int:
    """Steps of an epoch where masks change by epochs in a run of so many steps: its data set is opened to tell them.

    0 where nothing depends on it, or the data are not here.
    """
    one, two = ([turn for turn in turns(recipe, installed, many) if turn[0].startswith("masks.")] for many in (1, 2))
    if not recipe.run.steps or one == two:
        return 0
    try:
        return len(build_sources(recipe, installed).data) // recipe.run.batch
    except UserError:
        return 0


def _moments(recipe: Recipe, installed: Catalogue, name: str) -> list[Progress]:
    """Moments for which masks of a group must be drawn: these, and around each turn of its schedules."""
    found = _spread(recipe, TRIED_STEPS)
    steps, epoch_steps = found[0].steps, found[0].epoch_steps
    own = [step for place, _, step in turns(recipe, installed, epoch_steps) if place.startswith(f"masks.{name}.")]
    around = sorted({step + more for step in own for more in (-1, 0)})
    return [*found, *(Progress(step, steps, epoch_steps) for step in around if 0 <= step < steps)]


def _draw(
    recipe: Recipe, sources: Sources, name: str, grid: Grid, at: Progress, seed: int, chance: int | None = None
) -> Mask:
    rows, views = range(_rows_drawn(recipe, sources)), sources.views[name].count
    return draw_mask(sources.masks[name], grid, derive_seed(seed, name), at, rows, views, chance=chance)


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
        yield no_signal(f"{place}.target", term.target, signals)
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


def _typical(
    recipe: Recipe, installed: Catalogue, method: Method, sources: Sources
) -> tuple[Progress, int, float, float]:
    """What comes nearest to the mean of many drawn masks in arithmetic, and that mean.

    Returns the moment and the seed of that draw, the mean in units of it, and how many patches of an image the student
    sees, as a mean. Each moment has a seed of its own, whatever the run's, and all are of one step's chance: what a
    recipe costs is no matter of its seed, nor an image's of its length.
    Arithmetic goes nearly as weights times tokens: the encoder's by patches seen, the predictor's by patches seen and
    asked for by each block; a teacher sees everything, forward only.
    """
    encoder, predictor = _count(method.student.encoder), _count(method.student.predictor)  # type: ignore[arg-type]
    teachers = sum(hasattr(target, "encoder") for target in method.targets.values())
    grids, rows = sources.grids(method.student.encoder), _rows_drawn(recipe, sources)
    moments = _spread(recipe, COUNTED_STEPS, _epoch_steps(recipe, installed))
    work, patches = torch.ones(len(moments), dtype=torch.double), 0.0
    for name, views in sources.views.items():
        whole = views.count * math.prod(grids[name])
        if name not in sources.masks:
            patches += whole * (views.role != "target")
            continue
        for seed, at in enumerate(moments):
            mask = _draw(recipe, sources, name, grids[name], at, seed, COUNTED)
            seen, asked = mask.context.index.numel(), mask.target.index.numel()
            blocks = mask.target.index.shape[1]
            work[seed] += encoder * seen + predictor * (seen * blocks + asked) + teachers * encoder * whole * rows / 3
            patches += mask.context.count / rows / len(moments) * (views.role != "target")
    seed = int((work - work.mean()).abs().argmin())
    return moments[seed], seed, (work.mean() / work[seed]).item(), patches


def _rehearse(recipe: Recipe, installed: Catalogue, method: Method, sources: Sources) -> Flow:
    drawn = _rows_drawn(recipe, sources)
    images = min(DRY_IMAGES, drawn)
    typical, seed, mean, patches = _typical(recipe, installed, method, sources)
    drawing = {"seed": seed, "at": typical, "drawn": drawn, "chance": COUNTED}
    batch = fake_batch(sources, method.student.encoder, images, "meta", **drawing)
    at = Progress(0, 1)
    seen: dict[str, str] = {}
    read: list[tuple[Tokens, bool]] = []  # what the student's encoder said, and whether its summary is a token
    with _shapes(method, seen, read), FlopCounterMode(display=False) as counter:
        try:
            loss, _ = compute_loss(method, batch, at)
            loss.backward()
        except shapes.WrongShape as wrong:
            raise recipe.text.error([Problem(seen["last"], str(wrong))]) from wrong
        except UserError:
            raise
        except Exception as error:  # a plugin's own mistake, whatever it raised
            where = seen.get("last", "the step")
            said = str(error) if refuses(error) else f"failed in a rehearsed step: {located(error)}"
            raise recipe.text.error([Problem(where, said)]) from error
    unused = tuple(name for name, parameter in trainable(method) if parameter.grad is None)
    counts = {name: _count(part) for name, part in _named(method).items()}
    rows, flops = tuple(_rows(recipe, batch, method, counts, seen)), counter.get_total_flops() / images * mean
    idle = tuple(_idle_parts(recipe, method, read))
    return Flow(rows, counts, flops, unused, method.student.encoder.width, images, patches, idle)


def _idle_parts(recipe: Recipe, method: Method, read: list[tuple[Tokens, bool]]) -> Iterator[str]:
    """Target generators that no loss reads; and a summary that probes read, but no loss."""
    owners = {name.split(".")[0] for term in method.terms.values() for name in (term.predict, term.target) if name}
    probed = "" if recipe.evaluate is None else recipe.evaluate.network
    probed = next(iter(encoders(method))) if probed == "auto" else probed
    for name in method.targets:
        if name not in owners | {probed}:
            yield f"no loss reads targets.{name}: its arithmetic serves nothing"
    said = [(token, apart) for tokens, apart in read for token in (tokens.summary, tokens.prefix) if token is not None]
    deaf = all(apart and token.grad is None for token, apart in said)
    if recipe.evaluate is not None and not recipe.evaluate.layers and deaf:
        yield "evaluate.layers: 0 probes the class token, which no loss reads; 1 probes the patches of the last block"


def _apart(tokens: Tokens) -> bool:
    """Whether the summary is a token of its own, and no pool of the patches."""
    if tokens.prefix is None or not (tokens.summary.requires_grad and tokens.patches.requires_grad):
        return False
    return torch.autograd.grad(tokens.summary.sum(), tokens.patches, allow_unused=True, retain_graph=True)[0] is None


@contextmanager
def _shapes(method: Method, seen: dict[str, str], read: list[tuple[Tokens, bool]]) -> Iterator[None]:
    """Notes the shapes that parts return, which part was entered last, and all that the encoder said."""
    hooks = []
    for name, part in _named(method).items():

        def enter(_module: nn.Module, _given: Any, name: str = name) -> None:
            seen["last"] = name

        def leave(module: nn.Module, given: Any, out: Any, name: str = name) -> None:
            seen["last"] = name
            shapes.check(name.split(".")[0], module, given, out)
            seen[name] = _shape_of(out)
            if isinstance(out, Tokens):
                read.append((out, _apart(out)))
                for token in (out.summary, out.prefix):
                    if token is not None and token.requires_grad:
                        token.retain_grad()

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
