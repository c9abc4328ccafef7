"""Does what leaves a part have the shape that its contract says? Asked once, in the rehearsal of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Signal, Tokens, letters


class WrongShape(Exception):  # noqa: N818 - becomes a problem of the recipe
    """What a part returned, and what its contract says."""


def check(family: str, part: Any, given: tuple[Any, ...], out: Any) -> None:
    """Compares what an encoder, predictor, target generator or loss returned with its contract.

    Raises:
        WrongShape: says both, in the legend's letters.
    """
    if family == "encoder":
        _tokens(part, given, out)
    elif family == "predictor":
        tokens, target = given[0], given[1]
        outputs = {n: s for n, s in part.outputs.items() if target is not None or s.kind == "image"}
        rows = 0 if target is None else target.count
        _signals(outputs, out, rows, (len(tokens.patches),), "[s e]")
    elif family == "targets":
        batch = given[0]
        read = [group for group in batch.groups.values() if group.role != "context"]
        shapes = [group.pixels.shape[:2] for group in read]
        lead = (sum(views for views, _ in shapes), shapes[0][1]) if shapes else (0, 0)
        masked = any(group.mask is not None for group in read)  # else there is no patch to speak of
        outputs = {n: s for n, s in part.outputs.items() if (masked if s.kind == "patch" else read)}
        _signals(outputs, out, len(batch.pairing.sequence), lead, "[u b e]")
    elif family == "losses":
        _loss(out)


def _tokens(part: Any, given: Sequence[Any], out: Any) -> None:
    if not isinstance(out, Tokens):
        raise WrongShape(f"returned {_said(out)}; the contract says Tokens")
    context = given[1] if len(given) > 1 else None
    whole = out.grid[0] * out.grid[1]
    lengths = {whole} if context is None else {whole, context.index.shape[1]}
    s, k, d = out.patches.shape if out.patches.ndim == 3 else (0, 0, 0)
    if (s, d) != (len(given[0]), part.width) or k not in lengths:
        wanted = f"[{len(given[0])} {' or '.join(map(str, sorted(lengths)))} {part.width}]"
        raise WrongShape(f"returned patches {letters(out.patches)}; the contract says [s k d] = {wanted}")
    if out.summary.ndim != 2 or len(out.summary) != s:
        raise WrongShape(f"returned a summary {letters(out.summary)}; the contract says [s d], s = {s}")


def _signals(outputs: Mapping[str, Signal], out: Any, rows: int, lead: tuple[int, ...], legend: str) -> None:
    if not isinstance(out, Mapping) or set(out) != set(outputs):
        names = ", ".join(sorted(out)) or "nothing" if isinstance(out, Mapping) else _said(out)
        raise WrongShape(f"returned {names}; it declares {', '.join(sorted(outputs)) or 'nothing'}")
    for name, signal in outputs.items():
        wanted, form = wanted_shape(signal, rows, lead, legend)
        if tuple(out[name].shape) != wanted or out[name].is_floating_point() == signal.ids:
            numbers = " ".join(map(str, wanted))
            found = f"{letters(out[name])} {str(out[name].dtype).removeprefix('torch.')}"
            what = f"class ids {form} = [{numbers}] int64" if signal.ids else f"{form} = [{numbers}]"
            hint = "" if out[name].is_floating_point() or signal.ids else "; class ids are declared with ids=True"
            found = found if out[name].is_floating_point() == signal.ids else letters(out[name])
            raise WrongShape(f"returned {name} {found}; the contract says {what}{hint}")


def wanted_shape(signal: Signal, rows: int, lead: tuple[int, ...], letters: str) -> tuple[tuple[int, ...], str]:
    """The shape of a signal, and its form in the legend's letters; `rows` of patches, `lead` of images."""
    shape, form = ((rows,), "[t e]") if signal.kind == "patch" else (lead, letters)
    return (shape, form.replace(" e]", "]")) if signal.ids else ((*shape, signal.width), form)


def _loss(out: Any) -> None:
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[0], Tensor) or out[0].ndim:
        raise WrongShape(f"returned {_said(out)}; the contract says a 0-d value and a mapping of 0-d figures")


def _said(x: Any) -> str:
    return f"a tensor {letters(x)}" if isinstance(x, torch.Tensor) else f"a {type(x).__name__}"
