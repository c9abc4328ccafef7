"""What happens between a batch and its loss? Where the families meet: the file to read first.

pixels, context Patches --> encoder --> Tokens --> predictor --> predictor.NAME --+
              |         target Patches ----------------^                          |
              +------------- encoder.context (tokens of what was seen) -----------+
pixels, target Patches  --> target generator (owns any teacher) --> TARGET.NAME --+--> losses --> scalar
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslzoo.contracts import Batch, Group, Reading, Signal, Student
from sslzoo.errors import RunError
from sslzoo.progress import Progress
from sslzoo.rng import chances

if TYPE_CHECKING:
    from sslzoo.recipe.schedule import Schedule


CONTEXT = "encoder.context"  # the signal of the context encoder's own tokens


@dataclass(frozen=True)
class Term:
    """One loss of a recipe: which signals it compares, and what it counts for."""

    predict: str  # such as predictor.patch
    target: str | None  # such as teacher.patch
    weight: Schedule


class Method(nn.Module):
    """Everything of a method that has parameters or buffers, wired by the recipe."""

    def __init__(
        self,
        student: Student,
        targets: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        terms: Mapping[str, Term],
    ) -> None:
        super().__init__()
        self.student = student
        self.targets: Any = nn.ModuleDict(targets)  # name -> target generator
        self.losses: Any = nn.ModuleDict(losses)  # name -> loss
        self.terms = dict(terms)

    def forward(self, batch: Batch, at: Progress, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """`compute_loss` of this method; data parallel wraps this call."""
        return compute_loss(self, batch, at, log)


def compute_loss(method: Method, batch: Batch, at: Progress, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Everything between a batch and its loss: the sum of the terms, and 0-d metrics that stay on the device.

    With `log`, also the statistics that only a log line needs; then figures of rows, of which another micro-batch or
    rank may have more, or none, are `weighed`, and deviations are `moments`.
    """
    student = encode_and_predict(method.student, batch, at)
    signals = {f"predictor.{name}": signal for name, signal in student.signals.items()}
    for name, target in method.targets.items():
        found = target(batch, student, at)
        check_ids(name, target.outputs, found, log)
        signals |= {f"{name}.{key}": signal for key, signal in found.items()}
    if any(term.predict == CONTEXT for term in method.terms.values()):
        signals[CONTEXT] = context_tokens(batch, student)
    total, metrics = torch.zeros((), device=student_device(student)), {}
    with full_precision(total.device):
        for name, term in method.terms.items():
            target = None if term.target is None else _full(signals[term.target])
            pairing: Any = batch.seen if term.predict == CONTEXT else batch.pairing
            value, extra = method.losses[name](_full(signals[term.predict]), target, pairing, at)
            total = total + term.weight(at) * value
            said = {f"{name}/{key}": x.detach() for key, x in extra.items()}
            if log and signals[term.predict].ndim == 2:
                said = {key: weighed(x, len(signals[term.predict])) for key, x in said.items()}
            metrics |= {f"loss/{name}": value.detach()} | said
        if log:
            metrics |= _output_std(method, signals)
    return total, metrics


def encode_and_predict(student: Student, batch: Batch, at: Progress) -> Reading:
    """Tokens of every group the student reads, and its signals: patches joined along t, images along v."""
    tokens, found = {}, {name: [] for name in student.predictor.outputs}
    for name, group in batch.groups.items():
        if group.role == "target":
            continue
        mask = group.mask
        pixels = sequences(group)
        hand_out(student.encoder, group.lots)  # type: ignore[arg-type]
        tokens[name] = student.encoder(pixels, None if mask is None else mask.context)
        said = student.predictor(tokens[name], None if mask is None else mask.target, at)
        for key, signal in student.predictor.outputs.items():
            if signal.kind == "image":
                found[key].append(said[key].unflatten(0, (-1, group.pixels.shape[1])))  # (c v b) e -> (c v) b e
            elif mask is not None:
                found[key].append(said[key])
    said = {key: rows[0] if len(rows) == 1 else torch.cat(rows) for key, rows in found.items() if rows}
    return Reading(tokens, said)  # without masks no patch is guessed, and then there is no such signal


def hand_out(encoder: nn.Module, lots: Tensor | None) -> None:
    """Gives what leaves branches out by chance (`sslzoo.nn.DropPath`) the chances of the sequences that are read next.

    They are the samples' own, wherever they are computed. None: torch draws.
    """
    drops = [module for module in encoder.modules() if "chances" in vars(module)] if encoder.training else []
    if drops:
        given = [None] * len(drops) if lots is None else chances(lots, len(drops)).unbind()
        for module, own in zip(drops, given, strict=True):
            module.chances = own  # type: ignore[assignment]


def check_ids(name: str, outputs: Mapping[str, Signal], signals: Mapping[str, Tensor], log: bool) -> None:
    """Class ids lie within the width of their signal; on a GPU, which would be waited for, asked with the log alone.

    Raises:
        RunError: they do not, or are no whole numbers: the target generator's fault, though a loss would fail.
    """
    for key, ids in signals.items():
        if not outputs[key].ids:
            continue
        if ids.is_floating_point():
            raise RunError(f"targets.{name}: {key} holds {ids.dtype}".replace("torch.", "") + "; class ids are int64")
        if ids.numel() and (ids.device.type == "cpu" or (log and ids.device.type != "meta")):
            low, high, width = int(ids.min()), int(ids.max()), outputs[key].width
            if not 0 <= low <= high < width:
                found = low if low < 0 else high
                raise RunError(f"targets.{name}: the class id {found} in {key}, which has classes 0 to {width - 1}")


def context_tokens(batch: Batch, student: Reading) -> Tensor:
    """Tokens of the patches that the student saw, of groups with masks, one under another: [n d]."""
    masks = {name: batch.groups[name].mask for name in student.tokens}
    return torch.cat([student.tokens[name].seen(mask.context) for name, mask in masks.items() if mask is not None])


def sequences(group: Group) -> Tensor:
    """The pixels of a group, one view a sequence: [v b 3 H W] -> [s 3 H W]."""
    pixels = group.pixels.flatten(0, 1)
    return pixels if group.mask is None else group.mask.rows(pixels)


def student_device(reading: Reading) -> torch.device:
    """Where the student's tokens live."""
    return next(iter(reading.tokens.values())).patches.device


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Turns autocast off; the meta device, where steps are rehearsed, knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _full(signal: Tensor) -> Tensor:
    return signal.float() if signal.is_floating_point() else signal


def _output_std(method: Method, signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What gives the deviation over rows, mean over channels, of what is guessed and what is right: 0 is collapse.

    Of what is right also where every row has the length √e: a loss that normalizes leaves that of its targets free.
    """
    found = {}
    for name, term in method.terms.items():
        for side, key in (("prediction", term.predict), ("target", term.target)):
            if key is not None and signals[key].is_floating_point():
                rows = _full(signals[key].detach()).flatten(0, -2)
                found[f"{name}/{side}_std"] = moments(rows)
                if side == "target":
                    alike = nn.functional.normalize(rows, dim=-1) * rows.shape[-1] ** 0.5
                    found[f"{name}/target_unit_std"] = moments(alike)
    return found


def weighed(x: Tensor, rows: int) -> Tensor:
    """A mean over some rows, 0-d, as [2]: the sum and how many. Such pairs may be added up; of no rows it is 0, 0."""
    return torch.stack([x * rows, torch.full_like(x, rows)]) if rows else x.new_zeros(2)


def moments(x: Tensor) -> Tensor:
    """What the deviation of rows [n e] follows from, as [4 e] in float64, which may be added up: `run.metrics.collect`.

    The sums over rows of: the mean here, its square, the variance around it, and 1.
    """
    if not len(x):
        return x.new_zeros(4, x.shape[-1], dtype=torch.float64)
    variance, mean = (one.double() for one in torch.var_mean(x, 0, correction=0))
    return torch.stack([mean, mean.square(), variance, torch.ones_like(mean)]) * len(x)
