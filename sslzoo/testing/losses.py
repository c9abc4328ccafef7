"""Does a loss keep its contract? A right gradient, weights that weigh, two ranks as one, finite at extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Pairing, Signal
from sslzoo.testing.report import Check, Skip, Violation
from sslzoo.testing.scene import AT, as_two_ranks, pairing, seeded

Make = Callable[..., Any]
ROWS, WIDTH = 12, 8


def _part(make: Make, kind: str = "") -> tuple[Any, str]:
    """The loss, and the kind of signal that it takes: patch or image."""
    kinds, refusal = [kind] if kind else ["patch", "image"], Exception()
    for one in kinds:
        try:
            with seeded():
                part = make(Signal(one, WIDTH))  # type: ignore[arg-type]
            _value(part, *_inputs(one))
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            refusal = error
            continue
        return part, one
    raise Violation(
        "a loss of patch or image signals", f"neither works: {type(refusal).__name__}: {refusal}", "Signal(kind, 8)"
    )


def _inputs(kind: str, seed: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Pairing]:
    rng = torch.Generator().manual_seed(seed)
    shape = (ROWS, WIDTH) if kind == "patch" else (2, ROWS // 2, WIDTH)
    x, y = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    return x, y, pairing(ROWS)


def _value(part: Any, x: Tensor, y: Tensor, given: Pairing) -> Tensor:
    y = y.argmax(-1) if getattr(part, "class_ids", False) else y
    value, figures = part(x, y if part.needs_target else None, given, AT)
    if value.ndim:
        raise Violation("a 0-d value", f"shape {list(value.shape)}", "12 rows of 8")
    for name, figure in figures.items():
        if figure.ndim:
            raise Violation(f"the figure {name} 0-d", f"shape {list(figure.shape)}", "12 rows of 8")
    return value


def returns(make: Make) -> str:
    """It returns a 0-d value and 0-d figures, and says whether it needs a target."""
    part, kind = _part(make)
    if not isinstance(part.needs_target, bool):
        raise Violation("needs_target True or False", repr(part.needs_target), "")
    return f"of {kind} signals"


def gradient(make: Make) -> None:
    """Its gradient is that of finite differences."""
    part, kind = _part(make)
    part = part.double().eval()
    x, y, given = _inputs(kind, dtype=torch.float64)
    given = replace(given, weight=given.weight.double())
    x.requires_grad_(True)
    (found,) = torch.autograd.grad(_value(part, x, y, given), x)
    rng, step = torch.Generator().manual_seed(5), 1e-6
    for trial in range(4):
        way = torch.randn(x.shape, generator=rng, dtype=torch.float64)
        with torch.no_grad():
            slope = (_value(part, x + step * way, y, given) - _value(part, x - step * way, y, given)) / (2 * step)
        wanted, got = slope.item(), (found * way).sum().item()
        if abs(wanted - got) > 1e-4 * max(1.0, abs(wanted)):
            raise Violation(f"slope {wanted:.6g} by finite differences", f"{got:.6g} by autograd", f"direction {trial}")


def weights(make: Make) -> None:
    """A patch of weight 0 counts nothing; twice the weights are twice the loss."""
    part, kind = _part(make)
    if kind != "patch":
        raise Skip("of image signals")
    x, y, given = _inputs(kind)
    part = part.eval()
    once = _value(part, x, y, given).item()
    twice = _value(part, x, y, replace(given, weight=2 * given.weight)).item()
    if abs(twice - 2 * once) > 1e-4 * max(1.0, abs(once)):
        raise Violation(
            f"{2 * once:.6g} at twice the weights", f"{twice:.6g}; sum pairing.weight * row", "12 rows of 8"
        )
    some = given.weight.clone()
    some[0] = 0
    other = x.clone()
    other[0] += 10
    one, two = (_value(part, z, y, replace(given, weight=some)).item() for z in (x, other))
    if abs(one - two) > 1e-5 * max(1.0, abs(one)):
        raise Violation("no influence of a row of weight 0", f"{one:.6g} becomes {two:.6g}", "row 0 changed by 10")


def ranks(make: Make) -> None:
    """Two ranks, each with half of the rows, give the gradient of one process with all."""
    part, kind = _part(make)
    part = part.train()
    x, y, given = _inputs(kind)
    x.requires_grad_(True)
    state = {name: value.clone() for name, value in part.state_dict().items()}
    _value(part, x, y, given).backward()
    assert x.grad is not None
    whole, axis, half = x.grad.clone(), (0 if kind == "patch" else 1), (ROWS if kind == "patch" else ROWS // 2) // 2

    def work(rank: int) -> Any:
        part.load_state_dict(state)
        mine = x.detach().narrow(axis, rank * half, half).clone().requires_grad_(True)
        theirs = y.narrow(axis, rank * half, half)
        own = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
        # The engine's weights: ranks / all real rows, for gradients are averaged over ranks.
        here = replace(
            given, weight=2 * given.weight[own], sequence=given.sequence[own] - rank * 2, sequences=2, blocks=2
        )
        _value(part, mine, theirs, here).backward()
        assert mine.grad is not None
        return (mine.grad / 2).numpy()  # a tensor would share memory with a process that ends

    both = torch.cat([torch.from_numpy(part) for part in as_two_ranks(work)], axis)
    gap = (both - whole).abs().max().item()
    if gap > 1e-5 * max(1e-3, whole.abs().max().item()) + 1e-7:
        came = f"a gradient that differs by {gap:.1e} of {whole.abs().max().item():.1e}"
        hint = "" if kind == "patch" else "; use gather, all_mean and all_sum of sslzoo"
        raise Violation("the gradient of one process", came + hint, "12 rows of 8, 6 on each rank")


def extremes(make: Make) -> None:
    """It stays finite for large, equal and zero inputs."""
    part, kind = _part(make)
    x, y, given = _inputs(kind)
    for name, one, other in (
        ("both zero", x * 0, y * 0),
        ("equal", x, x.clone()),
        ("1e4 times as large", x * 1e4, y * 1e4),
        ("1e-6 times as large", x * 1e-6, y * 1e-6),
        ("all rows alike", x[..., :1, :].expand_as(x).clone(), y[..., :1, :].expand_as(y).clone()),
    ):
        one = one.detach().requires_grad_(True)
        value = _value(part, one, other, given)
        value.backward()
        if not math.isfinite(value.item()) or not (one.grad is None or one.grad.isfinite().all()):
            what = "its gradient" if math.isfinite(value.item()) else f"{value.item()}"
            raise Violation(
                "a finite value and gradient", f"{what} is not" if what == "its gradient" else what, f"inputs {name}"
            )


def restores(make: Make) -> str:
    """All its state is saved: after loading, it says what it said."""
    part, kind = _part(make)
    x, y, given = _inputs(kind)
    part.train()
    for seed in range(3):
        _value(part, *_inputs(kind, seed))
    saved = {name: value.clone() for name, value in part.state_dict().items()}
    once = _value(part, x, y, given).item()
    with seeded(9):
        other = make(Signal(kind, WIDTH)).train()  # type: ignore[arg-type]
    other.load_state_dict(saved)
    again = _value(other, x, y, given).item()
    if abs(once - again) > 1e-6 * max(1.0, abs(once)):
        raise Violation(
            f"{once:.6g} after loading", f"{again:.6g}: some state is no parameter or buffer", "after 3 steps"
        )
    return f"{len(saved)} tensors"


CHECKS: tuple[Check, ...] = (returns, gradient, weights, ranks, extremes, restores)
