"""Does a target generator keep its contract? The right shapes and patches, no gradient, saved state."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslzoo.contracts import Batch, Grid, Reading, Student, TargetGenerator
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere, sums
from sslzoo.testing.report import Check, Make, Skip, Violation, check
from sslzoo.testing.scene import (
    AT,
    PATCH,
    as_moved,
    as_two_ranks,
    batch,
    declared,
    elsewhere,
    equal,
    everywhere,
    gathering,
    kept,
    nothing_asked,
    one_half,
    one_view,
    reading,
    seeded,
    size_of,
    steady,
    stirred,
    student,
    untouched,
)


def _part(make: Make, who: Student | None = None) -> tuple[Any, Student]:
    who = who or student()
    with seeded():
        return stirred(make(who)), who


def _called(part: Any, who: Student, given: Batch | None = None) -> tuple[dict[str, Tensor], Batch, Reading]:
    given = given or batch()
    read = reading(who, given)
    return dict(part(given, read, AT)), given, read


made = offers(TargetGenerator, lambda make: _part(make)[0], module=True)


@check(made)
def outputs(make: Make) -> str:
    """It returns the outputs it declares: patch signals [t e], image signals [u b e]; class ids from 0; inputs stay."""
    part, who = _part(make)
    given = batch()
    read = reading(who, given)
    with untouched(**{"the batch": given, "what the student said": read}):
        said = dict(part(given, read, AT))
    rows = len(given.pairing.sequence)
    declared(part.outputs, said, rows, (1, 3), "3 images of 32 x 32, 2 target blocks of 4 patches each")
    many = 48 if any(signal.ids for signal in part.outputs.values()) else 3
    for plain in (None, 0.0, 1.0, -1.0, 100.0, -100.0):  # class ids of many images, and plain ones
        given = batch(many)
        if plain is not None:
            given.groups["image"].pixels.fill_(plain)
        where = f"{many} images of 32 x 32" + (f", all pixels {plain:g}" if plain is not None else "")
        declared(part.outputs, _called(part, who, given)[0], len(given.pairing.sequence), (1, many), where)
    return size_of(part)


@check(made)
def stored(make: Make) -> None:
    """Its state is parameters and buffers, which are saved and moved to the device."""
    kept(_part(make)[0])


@check(outputs)
def moves(make: Make) -> None:
    """It runs on the device that it is moved to."""
    part, who = _part(make)
    given, read = as_moved(batch()), as_moved(reading(who, batch()))
    there = copy.deepcopy(who).to("meta")

    def call(moved: Any) -> None:
        moved(given, read, AT)
        moved.after_step(there, AT)

    elsewhere(part, call, make)


@check(outputs)
def repeats(make: Make) -> None:
    """In eval mode it says the same of the same, however often it is called."""
    part, who = _part(make)
    part.eval()
    given = batch()
    read = reading(who, given)
    steady(lambda: dict(part(given, read, AT)), "3 images")


@check(outputs)
def still(make: Make) -> None:
    """No gradient leaks: targets need none, and its own weights get none."""
    part, who = _part(make)
    said, _, _ = _called(part, who)
    leaking = [name for name, x in said.items() if x.requires_grad and not getattr(part, "trains", False)]
    if leaking:
        came = f"{', '.join(leaking)} with a gradient"
        raise Violation("targets without gradient (detach, or torch.no_grad), or `trains = True`", came, "3 images")


@check(outputs)
def follows(make: Make) -> str:
    """Being called changes nothing that `after_step` does not; the teacher moves there, whole, and only there."""
    part, who = _part(make)
    part.train()
    weights = _weights(part)
    for _ in range(2):
        _called(part, who)
    found = equal(weights, _weights(part), 0)
    if found:
        raise Violation("weights that stay when it is called", found, "two calls")
    with torch.no_grad():
        for p in who.parameters():
            p.add_(0.5)
    if getattr(part, "gated", False):
        part.after_step(who, AT, torch.tensor(False))
        found = equal(weights, _weights(part), 0)
        if found:
            raise Violation("weights that stay after a step that was not finite (gated)", found, "after_step")
    part.after_step(who, AT)
    after = _weights(part)
    moved = equal(weights, after, 0) != ""
    stays = [name for name in weights if name.startswith("encoder.") and torch.equal(weights[name], after[name])]
    if 0 < len(stays) < sum(name.startswith("encoder.") for name in weights):
        came = f"{len(stays)} of its tensors stay, such as {stays[0]}"
        raise Violation("a teacher of which all moves, or nothing", came, "after_step; all of the student moved by 0.5")
    return "moves in after_step" if moved else "has nothing that moves" if not weights else "did not move at this step"


@check(made)
def separate(make: Make) -> None:
    """It holds copies: the student's weights are not its own, and it does not change them."""
    part, who = _part(make)
    before = {name: p.clone() for name, p in who.named_parameters()}
    _shares_nothing(part, who, "make(student)")
    _called(part, who)
    part.after_step(who, AT)
    _shares_nothing(part, who, "after_step")
    found = equal(before, dict(who.named_parameters()), 0)
    if found:
        raise Violation("a student that stays as it is", found, "a call and after_step")


def _shares_nothing(part: nn.Module, who: Student, when: str) -> None:
    shared = {p.data_ptr() for p in who.parameters()} & {p.data_ptr() for p in part.parameters()}
    if shared:
        raise Violation("copies of the student's weights", f"{len(shared)} shared with it", when)


@check(outputs, repeats)
def looks(make: Make) -> None:
    """What it says depends on what the images show."""
    part, who = _part(make)
    part.eval()
    first = _called(part, who, batch(8))[0]
    for plain in (0.0, 1.0, -1.0, 100.0, -100.0):  # class ids of two images may be one
        given = batch(8)
        given.groups["image"].pixels.fill_(plain)
        if equal(first, _called(part, who, given)[0], 0):
            return
    raise Violation(
        "other targets for other images", "the same, whatever the images show", "8 images, and 8 of one color"
    )


@check(outputs, repeats)
def own(make: Make) -> None:
    """A patch's target follows that patch more than another one does, on oblong grids too."""
    part, who = _part(make)
    part.eval()
    for name in [name for name, signal in part.outputs.items() if signal.kind == "patch"]:
        for grid in ((4, 4), (2, 6), (6, 2)):
            try:
                mine, others = _followed(part, who, name, grid)
            except ValueError:
                if grid == (4, 4):
                    raise
                continue  # it refuses this size
            if mine < others:
                came = f"{mine:.3g}, and {others:.3g} of another patch's: mind the order of patches and the class token"
                smallest = f"{name}, grid {grid[0]} x {grid[1]}, one patch changed at a time"
                raise Violation("a target that changes most where its own patch does", came, smallest)


@torch.no_grad()
def _followed(part: Any, who: Student, name: str, grid: Grid) -> tuple[float, float]:
    """By how much targets change with their own patch, and what they must not fall below for those of others.

    Targets of a network follow all patches: another may move them up to twice as much. Class ids either change or not,
    and chance changes some: the mean over others must stay below.
    """
    ids, images = part.outputs[name].ids, 8
    given, fresh = (everywhere(images, grid, seed) for seed in (0, 1))
    group = given.groups["image"]
    pixels, other = group.pixels.clone(), fresh.groups["image"].pixels
    plain, gaps = _called(part, who, given)[0][name].clone(), []
    for patch in range(grid[0] * grid[1]):
        top, left = patch // grid[1] * PATCH, patch % grid[1] * PATCH
        there = (..., slice(top, top + PATCH), slice(left, left + PATCH))
        group.pixels.copy_(pixels)
        group.pixels[there] = other[there]
        gap = (_called(part, who, given)[0][name] - plain).float().abs().flatten(1 - ids)
        gaps.append((gap.sign() if ids else gap.mean(1)).unflatten(0, (images, -1)))
    moved = torch.stack(gaps)  # by patch changed, image, target
    asked = group.mask.target.index.flatten(1)[None]  # type: ignore[union-attr]
    mine, rest = moved.gather(0, asked).mean(), moved.scatter(0, asked, 0)
    others = rest.sum(0) / (len(moved) - 1) if ids else rest.amax(0) / 2
    return mine.item(), others.mean().item()


@check(outputs)
def empty(make: Make) -> None:
    """Where nothing is asked of any image it gives no rows."""
    part, who = _part(make)
    said = _called(part, who, nothing_asked())[0]
    declared(part.outputs, said, 0, (1, 3), "3 images, of which nothing is asked (t = 0)")


@check(outputs, repeats, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    part, who = _part(make)
    told = _seeded(part.eval(), who, batch(8))
    part.after_step(who, AT)
    return {**told, **sums(part.state_dict())}


@check(made)
def frozen(make: Make) -> None:
    """Its copies do not train: no parameter of a teacher asks for a gradient."""
    part, _ = _part(make)
    asking = [name for name, p in part.named_parameters() if p.requires_grad]
    if asking and not getattr(part, "trains", False):
        came = f"{', '.join(asking[:3])} would enter the optimizer"
        raise Violation("requires_grad False, or `trains = True`", came, "make(student)")


@check(outputs, stored)
def restores(make: Make) -> str:
    """All its state is saved: after loading, it says what it said, and follows as it would have."""
    part, who = _part(make)
    for _ in range(2):
        part.after_step(who, AT)
        _called(part, who)
    _, given, read = _called(part, who)
    with seeded(9):  # what it draws when it is made must be saved too
        other = make(student(1)).train(part.training)
    other.load_state_dict(copy.deepcopy(part.state_dict()))
    with seeded(1):
        said = dict(part(given, read, AT))
    with seeded(1):
        found = equal(said, dict(other(given, read, AT)), 1e-6)
    if found:
        raise Violation(
            "what it said before it was saved", f"{found}: some state is no parameter or buffer", "3 images"
        )
    with torch.no_grad():
        for p in who.parameters():
            p.add_(0.5)
    for one in (part, other):
        with seeded(1):
            one.after_step(who, AT)
    found = equal(part.state_dict(), other.state_dict(), 1e-6)
    if found:
        came = f"{found}: some state is no parameter or buffer"
        raise Violation("the same after_step as without a restart", came, "a student that moved")
    return f"{len(part.state_dict())} tensors"


@check(outputs, repeats)
def weightless(make: Make) -> None:
    """What it says of an image does not depend on the other images."""
    part, who = _part(make)
    if _relates(part):
        raise Skip("declares whole_batch, or normalizes over the batch")
    who.eval()
    for many, training in product((2, 3, 5, 9), (False, True)):
        part.train(training)
        given, changed = batch(many), batch(many)
        changed.groups["image"].pixels[:, 1:] = 0.3
        said, there = (_seeded(part, who, one) for one in (given, changed))
        first = given.pairing.sequence == 0
        for name, signal in part.outputs.items():
            one, other = ((x[name][first] if signal.kind == "patch" else x[name][:, 0]) for x in (said, there))
            found = equal({name: one}, {name: other}, 1e-5)
            if found:
                mode = "training" if training else "eval"
                raise Violation("the same target beside other images", found, f"image 0 of {many}, in {mode} mode")


def _seeded(part: Any, who: Student, given: Batch) -> dict[str, Tensor]:
    with seeded():
        return _called(part, who, given)[0]


@check(outputs, restores, slow=True)
def ranks(make: Make) -> None:
    """Two ranks, each with half of the images, end a step with the state of one process with all."""
    part, who = _part(make)
    part.train()
    start = {name: x.clone() for name, x in part.state_dict().items()}

    def state(rank: int | None, draw: int = 0) -> dict[str, np.ndarray]:
        part.load_state_dict(start)
        for number in range(2):
            with seeded(draw):
                _called(part, who, batch(4) if rank is None else one_half(batch(4), rank))
            with seeded(draw + number):
                part.after_step(who, AT)
        # Arrays: a tensor would share memory with a process that ends.
        return {name: x.detach().numpy().copy() for name, x in part.state_dict().items()}

    whole, other = ({name: torch.from_numpy(x) for name, x in state(None, draw).items()} for draw in (0, 8))
    if equal(whole, other, 0):
        raise Skip("draws by chance in training")
    queues = [name for name, x in part.named_buffers() if x.ndim > 1]  # filled in whatever order ranks come
    for half in as_two_ranks(state, make):
        both = {name: torch.from_numpy(x) for name, x in half.items()}
        if equal(whole, both, 1e-4) and (found := equal(_sorted(whole, queues), _sorted(both, queues), 1e-4)):
            came = f"{found}; use gather, all_mean and all_sum of sslzoo"
            raise Violation("the state of one process", came, "4 images, two steps")


def _sorted(state: dict[str, Tensor], queues: list[str]) -> dict[str, Tensor]:
    """A state whose queues have their rows in one order."""
    return state | {name: state[name][state[name].flatten(1).sum(1).argsort()] for name in queues if name in state}


@check(outputs, repeats)
def groups(make: Make) -> None:
    """It answers for each view that a teacher reads, in the recipe's order, as for that view alone."""
    part, who = _part(make)
    part.eval()
    where = "groups near (context), image (both; 2 views, 2 masks each, blocks of 1 to 4 patches), far (target)"
    said, given, _ = _called(part, who, gathering())
    declared(part.outputs, said, len(given.pairing.sequence), (3, 3), f"3 images; {where}")
    if _relates(part):
        return
    source = given.groups["image"].mask.source  # type: ignore[union-attr]
    for view in (0, 1):
        alone, _, _ = _called(part, who, one_view(given, view))
        own = source[given.pairing.sequence] // 3 == view  # type: ignore[index]
        rows = {name: own if signal.kind == "patch" else view for name, signal in part.outputs.items()}
        there = {name: said[name][at] for name, at in rows.items()}
        here = {name: x if part.outputs[name].kind == "patch" else x[0] for name, x in alone.items()}
        found = equal(here, there, 1e-5)
        if found:
            hint = "; mind roles, mask.rows, target.flat and the order [u b]"
            raise Violation("what it says of that view alone", found + hint, f"view {view} of image; {where}")


def _relates(part: nn.Module) -> bool:
    """Whether what it says of an image may depend on the others."""
    norms = nn.modules.batchnorm._BatchNorm
    return getattr(part, "whole_batch", False) or any(isinstance(one, norms) for one in part.modules())


CHECKS: tuple[Check, ...] = (
    made,
    outputs,
    stored,
    moves,
    still,
    frozen,
    separate,
    follows,
    repeats,
    looks,
    own,
    empty,
    restores,
    weightless,
    groups,
    processes,
    ranks,
)


def _weights(part: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in part.named_parameters()}
