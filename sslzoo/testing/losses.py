"""Does a loss keep its contract? A right gradient, weights that weigh, two ranks as one, finite at extremes.

A loss is checked with every kind of signal that it accepts: rows of patches, images, tokens that were seen; with class
ids as targets where it says `class_ids = True`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from sslzoo.contracts import Loss, Pairing, Signal
from sslzoo.testing.first import offers
from sslzoo.testing.process import Told, same_elsewhere, sums
from sslzoo.testing.report import Check, Make, Skip, Violation, check, raised
from sslzoo.testing.scene import AT, as_two_ranks, elsewhere, equal, kept, pairing, seeded, unreached

ROWS, WIDTH = 12, 8
UNEVEN = "11 rows of 4 sequences: 5, 1, none and 5"
Kind = Literal["patch", "image", "context"]
KINDS: tuple[Kind, ...] = ("patch", "image", "context")


def _made(make: Make, kind: Kind) -> Any:
    with seeded():
        return make(Signal(kind, WIDTH))


def _kinds(make: Make) -> dict[Kind, str]:
    """What came of each kind of signal: nothing where the loss works, else its error."""
    found: dict[Kind, str] = {}
    for kind in KINDS:
        try:
            part = _made(make, kind)
            if kind == "context" and part.needs_target:
                continue  # nothing says what would be right there
            part(*_given(part, *_inputs(part, kind)), AT)
            found[kind] = ""
        except Exception as error:
            found[kind] = raised(error, make) or f"{type(error).__name__}: {error}"
    return found


def _accepted(make: Make) -> Iterator[tuple[Any, Kind]]:
    """The loss, made anew for each kind of signal that it works with."""
    for kind, error in _kinds(make).items():
        if not error:
            yield _made(make, kind), kind


def _of_rows(make: Make) -> list[tuple[Any, Kind]]:
    """The loss, made for each kind of signal that has rows and that it works with."""
    parts: list[tuple[Any, Kind]] = [(part, kind) for part, kind in _accepted(make) if kind != "image"]
    if not parts:
        raise Skip("of image signals")
    return parts


def _any(make: Make) -> Any:
    errors = {}
    for kind in KINDS:
        try:
            return _made(make, kind)
        except ValueError as error:  # refuses this kind
            errors[kind] = str(error)
    refusals = "; ".join(f"{kind}: {error}" for kind, error in errors.items())
    raise Violation(
        "a loss of patch, image or context signals", f"it refuses each: {refusals}", f"Signal(kind, {WIDTH})"
    )


def _inputs(part: Any, kind: Kind, seed: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Pairing]:
    rng = torch.Generator().manual_seed(seed)
    shape = (2, ROWS // 2, WIDTH) if kind == "image" else (ROWS, WIDTH)
    x, y = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    if getattr(part, "class_ids", False):
        y = torch.randint(WIDTH, shape[:-1], generator=rng)
        y.flatten()[:2] = torch.tensor([0, WIDTH - 1])
    return x, y, pairing(ROWS)


def _given(part: Any, x: Tensor, y: Tensor, given: Pairing) -> tuple[Tensor, Tensor | None, Pairing]:
    return x, (y if part.needs_target else None), given


def _value(part: Any, x: Tensor, y: Tensor, given: Pairing) -> Tensor:
    return part(*_given(part, x, y, given), AT)[0]


def _where(kind: Kind) -> str:
    return f"{kind} signal, {'2 views of 6 images' if kind == 'image' else '12 rows'}, {WIDTH} wide"


made = offers(Loss, _any, module=True)


@check(made)
def returns(make: Make) -> str:
    """It returns a 0-d value and 0-d figures, for at least one kind of signal."""
    kinds = _kinds(make)
    if all(kinds.values()):
        failures = "".join(f"\n                   {kind}: {error}" for kind, error in kinds.items())
        raise Violation("a loss of patch, image or context signals", f"none works:{failures}", f"Signal(kind, {WIDTH})")
    for part, kind in _accepted(make):
        out = part(*_given(part, *_inputs(part, kind)), AT)
        if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], Tensor):
            raise Violation("a value and a mapping of figures", f"{type(out).__name__}", _where(kind))
        named = {"the value": out[0]} | {f"the figure {name}": figure for name, figure in dict(out[1]).items()}
        for name, x in named.items():
            if not isinstance(x, Tensor) or x.ndim:
                came = f"shape {list(x.shape)}" if isinstance(x, Tensor) else repr(x)
                raise Violation(f"{name} a 0-d tensor", came, _where(kind))
    ids = " with class ids" if getattr(_any(make), "class_ids", False) else ""
    refused = "".join(f"; not {kind}: {_brief(error)}" for kind, error in kinds.items() if error)
    return f"of {' and '.join(kind for kind, error in kinds.items() if not error)} signals{ids}{refused}"


def _brief(error: str) -> str:
    """The first line of an error, without the place in the part's file."""
    return error.splitlines()[0].split(" (/")[0][:80]


@check(returns)
def stored(make: Make) -> None:
    """Its state is parameters and buffers, none of them 0-d parameters."""
    for part, _ in _accepted(make):
        kept(part)


@check(returns)
def extremes(make: Make) -> None:
    """It stays finite for large, equal and zero inputs."""
    for part, kind in _accepted(make):
        x, y, given = _inputs(part, kind)
        ids = not y.is_floating_point()
        for name, one, other in (
            ("both zero", x * 0, y * 0),
            ("equal", x, y if ids else x.clone()),
            ("1e4 times as large", x * 1e4, y if ids else y * 1e4),
            ("1e-6 times as large", x * 1e-6, y if ids else y * 1e-6),
            ("all rows alike", x[..., :1, :].expand_as(x).clone(), y if ids else y[..., :1, :].expand_as(y).clone()),
        ):
            one = one.detach().requires_grad_(True)
            value = _value(part, one, other, given)
            value.backward()
            where = f"inputs {name}; {_where(kind)}"
            if not math.isfinite(value.item()):
                raise Violation("a finite value", f"{value.item()}", where)
            if one.grad is not None and not one.grad.isfinite().all():
                raise Violation("a finite gradient", "one that is not", where)


@check(returns)
def moves(make: Make) -> None:
    """It runs on the device that it is moved to."""
    for part, kind in _accepted(make):
        x, y, given = _inputs(part, kind)
        there = (x.to("meta"), y.to("meta"), given.map(lambda tensor: tensor.to("meta")))
        elsewhere(part, lambda moved, there=there: _value(moved, *there), make)


@check(returns)
def learns(make: Make) -> None:
    """A gradient reaches every parameter."""
    missed: list[set[str]] = []  # by kind of signal: a parameter may serve one of them
    for part, kind in _accepted(make):
        x, y, given = _inputs(part, kind)
        value = _value(part.train(), x.requires_grad_(True), y, given)
        missed.append(set(unreached(part, value)))
    if none := sorted(set.intersection(*missed)):
        raise Violation("a gradient in every parameter", f"none in {', '.join(none[:5])}", "as it was made")


@check(returns)
def few(make: Make) -> None:
    """One row, or none, gives a finite value and finite gradients: of some images nothing may be asked."""
    for part, kind in _of_rows(make):
        x, y, given = _inputs(part, kind)
        for rows in (1, 0):
            one = x[:rows].clone().requires_grad_(True)
            some = replace(given, weight=given.weight[:rows] * ROWS, sequence=given.sequence[:rows])
            _finite(part, kind, (one, y[:rows], some), f"{kind}, {rows} rows")


def _finite(part: Any, kind: Kind, rest: tuple[Tensor, Tensor, Pairing], where: str) -> None:
    """Value and gradient are finite, and the figures that are so of the usual rows (of no rows, none counts)."""
    x, y, given = rest
    value, figures = part(*_given(part, x.requires_grad_(True), y, given), AT)
    usual = part(*_given(part, *_inputs(part, kind)), AT)[1]
    slope = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    found = {"value": value, "gradient": slope}
    found |= {name: figure for name, figure in figures.items() if len(x) and usual[name].isfinite()}
    for name, got in found.items():
        if got is not None and not got.isfinite().all():
            raise Violation(f"a finite {name}", "nan or inf: is a mean taken over no rows?", where)


@check(few)
def uneven(make: Make) -> None:
    """Images may ask for unlike numbers of patches, some for none: value, gradient and figures stay finite."""
    for part, kind in _of_rows(make):
        x, y, given = _inputs(part, kind)
        of = torch.tensor([0] * 5 + [1] + [3] * 5)  # of the third sequence, none
        given = replace(given, weight=given.weight[:11] * ROWS / 11, sequence=of)
        _finite(part, kind, (x[:11].clone(), y[:11], given), f"{kind}, {UNEVEN}")


@check(returns)
def lopsided(make: Make) -> None:
    """Student and teacher may read unlike numbers of views: served, or refused with a ValueError."""
    parts = [part for part, kind in _accepted(make) if kind == "image" and part.needs_target]
    if not parts:
        raise Skip("of no images that are compared with others")
    (part,) = parts
    x, y, given = _inputs(part, "image")
    match = torch.tensor([[False, True], [True, False], [True, True]])
    try:
        value = _value(part, torch.cat([x, x[:1] + 1]), y, _matched(given, match))
    except ValueError:
        return
    if not math.isfinite(value.item()):
        raise Violation("a finite value", f"{value.item()}", "3 views of the student, 2 of the teacher")


@check(returns, slow=True)
def processes(make: Make) -> None:
    """It is the same in another process, where `hash()`, the order of sets and the clock are others."""
    same_elsewhere(make, _told)


def _told(make: Make) -> Told:
    told: dict[str, Tensor] = {}
    for part, kind in _accepted(make):
        told |= {f"{name} of a {kind} loss": x for name, x in sums(part.state_dict()).items()}
        told |= {f"value of a {kind} signal": _value(part.eval(), *_inputs(part, kind)).detach()}
    return told


@check(returns)
def weights(make: Make) -> None:
    """A row of weight 0 counts nothing; twice the weights are twice the loss (a `whole_batch` loss: the former).

    A loss with `own_mean = True` reads no weights.
    """
    for part, kind in _of_rows(make):
        x, y, given = _inputs(part.eval(), kind)
        once = _value(part, x, y, given).item()
        twice = _value(part, x, y, replace(given, weight=2 * given.weight)).item()
        if getattr(part, "own_mean", False):
            if twice != once:
                came = f"{twice:.6g} at twice the weights"
                raise Violation(f"{once:.6g} at any weights (own_mean)", came, _where(kind))
            continue
        if not getattr(part, "whole_batch", False) and abs(twice - 2 * once) > 1e-4 * max(1e-2, abs(once)):
            came = f"{twice:.6g}; sum pairing.weight * row"
            raise Violation(f"{2 * once:.6g} at twice the weights", came, _where(kind))
        some = given.weight.clone()
        some[0] = 0
        other = x.clone()
        other[0] = 3 * other[0].roll(1)
        one, two = (_value(part, z, y, replace(given, weight=some)).item() for z in (x, other))
        if abs(one - two) > 1e-5 * max(1e-2, abs(one)):
            came = f"{one:.6g} becomes {two:.6g}"
            raise Violation("no influence of a row of weight 0", came, f"row 0 changed; {_where(kind)}")


@check(returns)
def meets(make: Make) -> None:
    """Of images, only views are compared that may meet (`pairing.match`); where none may, it refuses or is finite."""
    parts = [part.eval() for part, kind in _accepted(make) if kind == "image" and part.needs_target]
    if not parts:
        raise Skip("of no images that are compared with others")
    (part,) = parts
    x, y, given = _inputs(part, "image")
    second = torch.tensor([[False, True], [False, True]])  # the teacher's first view meets none
    other = y.clone()
    other[0] = (y[0] + 1) % WIDTH if getattr(part, "class_ids", False) else y[0] + 1
    if getattr(part, "whole_batch", False):  # negatives and moments may be of any view
        found = _value(part, x, y, _matched(given, second)) == _value(part, x, y, _matched(given, ~second))
        came = "the same loss, whatever views may meet" if found else ""
    else:
        slopes = [{"the gradient": _slope_in(part, x, z, _matched(given, second))} for z in (y, other)]
        came = equal(slopes[0], slopes[1], 1e-6)
    if came:
        raise Violation("that views meet where pairing.match is true, and there alone", came, _where("image"))
    try:
        value = _value(part, x, y, _matched(given, second & False)).item()
    except ValueError:
        return
    if not math.isfinite(value):
        raise Violation("a finite value, or a ValueError, where no view meets another", f"{value}", _where("image"))


def _matched(given: Pairing, match: Tensor) -> Pairing:
    return Pairing(given.weight, match, given.sequence, given.sequences, given.blocks)


def _slope_in(part: Any, x: Tensor, y: Tensor, given: Pairing) -> Tensor:
    """The gradient in the prediction."""
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(_value(part, x, y, given), x)[0]


@check(returns)
def gradient(make: Make) -> None:
    """Its gradient is that of finite differences."""
    for part, kind in _accepted(make):
        part = part.double().eval()
        x, y, given = _inputs(part, kind, dtype=torch.float64)
        given = replace(given, weight=given.weight.double())
        _sloped(part, kind, x, y, given)
        if y.is_floating_point():  # far apart, where a branch may be of its own
            _sloped(part, kind, 5 * x, y, given)


def _sloped(part: Any, kind: Kind, x: Tensor, y: Tensor, given: Pairing) -> None:
    x = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(_value(part, x, y, given), x, allow_unused=True)
    if found is None:
        raise Violation("a gradient in the prediction", "none: was it detached?", _where(kind))
    for trial in range(4):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(5 + trial), dtype=torch.float64)
        wanted, unsure = _slope(part, x.detach(), way, (y, given))
        got = (found * way).sum().item()
        if abs(wanted - got) > 1e-4 * max(1e-2, abs(wanted)) + 3 * unsure:
            came = f"{got:.6g} by autograd"
            raise Violation(f"slope {wanted:.6g} by finite differences", came, f"direction {trial}; {_where(kind)}")


def _slope(part: Any, x: Tensor, way: Tensor, rest: tuple[Tensor, Pairing]) -> tuple[float, float]:
    """The slope at x by central differences, and how far it can be trusted.

    A loss that computes in float32 inside is a staircase to small steps, one with a kink is bent for large ones: of
    several steps that one is believed whose halves agree best.
    """

    @torch.no_grad()
    def central(step: float) -> float:
        here, there = (_value(part, x + sign * step * way, *rest).double() for sign in (1, -1))
        return ((here - there) / (2 * step)).item()

    found = []
    for step in (1e-6, 1e-4, 1e-3, 1e-2):
        slopes = [central(step), central(0.5 * step), central(0.7 * step)]
        found.append((max(slopes) - min(slopes), slopes[1]))
    unsure, slope = min(found)
    return slope, unsure


@check(returns)
def restores(make: Make) -> str:
    """All its state is saved: after loading, it says what it said, however often it was called before."""
    many = 0
    for part, kind in _accepted(make):
        part.train()
        for seed in range(5):
            _value(part, *_inputs(part, kind, seed))
        saved = {name: value.clone() for name, value in part.state_dict().items()}
        x, y, given = _inputs(part, kind)
        once = _value(part, x, y, given).item()
        with seeded(9):
            other = make(Signal(kind, WIDTH)).train()
        other.load_state_dict(saved)
        again = _value(other, x, y, given).item()
        if abs(once - again) > 1e-6 * max(1e-3, abs(once)):
            came = f"{again:.6g}: some state is no parameter or buffer"
            raise Violation(f"{once:.6g} after loading", came, f"after 5 steps; {_where(kind)}")
        many = len(saved)
    return f"{many} tensors"


@check(returns)
def pure(make: Make) -> None:
    """It changes neither its inputs nor global random numbers."""
    for part, kind in _accepted(make):
        x, y, given = _inputs(part, kind)
        before, state = (x.clone(), y.clone(), given.weight.clone()), torch.get_rng_state()
        _value(part, x, y, given)
        for name, one, other in zip(("prediction", "target", "weights"), before, (x, y, given.weight), strict=True):
            if not torch.equal(one, other):
                raise Violation(f"the {name} as it was", "changed in place", _where(kind))
        if not torch.equal(state, torch.get_rng_state()) and not part.training:
            raise Violation("no random numbers outside training", "torch's global generator was used", _where(kind))


@check(returns, stored, slow=True)
def ranks(make: Make) -> None:
    """Two ranks, each with half of the rows, give the gradient of one process with all."""
    for part, kind in _accepted(make):
        part.train()
        state = {name: value.clone() for name, value in part.state_dict().items()}
        whole, axis = _gradients(part, kind), 1 if kind == "image" else 0

        def half(rank: int, part: Any = part, kind: Kind = kind, state: dict[str, Tensor] = state) -> Any:
            part.load_state_dict(state)
            # Arrays: a tensor would share memory with a process that ends. Gradients are averaged over ranks.
            return {name: x.numpy() / 2 for name, x in _gradients(part, kind, rank).items()}

        one, two = as_two_ranks(half, make)
        for name, wanted in whole.items():
            halves = [torch.from_numpy(rank[name]) for rank in (one, two)]
            both = torch.cat(halves, axis) if name == "the prediction" else halves[0] + halves[1]
            gap = (both - wanted).abs().max().item()
            if not gap <= 1e-5 * max(1e-3, wanted.abs().max().item()) + 1e-7:  # nor nan
                came = f"one of {name} that differs by {gap:.1e} of {wanted.abs().max().item():.1e}"
                hint = "; use gather, all_mean and all_sum of sslzoo"
                raise Violation("the gradient of one process", came + hint, f"{_where(kind)}, half on each rank")


def _gradients(part: Any, kind: Kind, rank: int | None = None) -> dict[str, Tensor]:
    """Gradients of the prediction and of the loss's own parameters, for all rows or for one rank's half of them."""
    x, y, given = _inputs(part, kind)
    if rank is not None:
        axis = 1 if kind == "image" else 0
        half, rows = x.shape[axis] // 2, slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
        x, y = (z.narrow(axis, rank * half, half).clone() for z in (x, y))
        weight, sequence = 2 * given.weight[rows], given.sequence[rows] - rank * 2  # ranks / all real rows
        given = replace(given, weight=weight, sequence=sequence, sequences=2, blocks=2)
    part.zero_grad()
    x.requires_grad_(True)
    _value(part, x, y, given).backward()
    assert x.grad is not None
    own = {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}
    return {"the prediction": x.grad} | own


CHECKS: tuple[Check, ...] = (made, returns, stored, moves, extremes, few, uneven, weights, meets)
CHECKS += (lopsided, gradient, learns, restores, pure, processes, ranks)
