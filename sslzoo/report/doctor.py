"""Is a run healthy? A verdict with its evidence and the two likeliest remedies, from what its folder recorded.

Signs, in the order in which they are asked, since a run may show several:

    diverged             its loss was not finite, or it ended for that
    full collapse        all images alike: effective rank of the summaries near 1, or rows of targets without spread
    teacher frozen       the teacher kept most of its starting weights
    dimensional collapse few directions are left, and the effective rank or the spread of predictions fell far
    not learning         probes find no more in the trained encoder than in the same encoder untrained
    failed               none of these, and it ended by an error
    unknown              nothing was recorded to judge by
    healthy              none of these

RankMe: Garrido et al. 2023. Dimensional collapse: Jing et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from sslzoo.report.records import Record
from sslzoo.run.state import State
from sslzoo.step import CONTEXT

FROZEN = 0.5  # share of its starting weights from which on a teacher counts as frozen
GAIN = 0.5  # points of percent that a figure must be above the untrained encoder's, else nothing was learnt
LOWER = 0.8  # share of its highest, to which the effective rank has fallen where views are all alike
RATE = 1e-2  # a learning rate that is far too high for AdamW: vision transformers train with 1e-4 to 2e-3


@dataclass(frozen=True)
class Limits:
    """Where sick begins, halfway between runs that were healthy and runs made sick on purpose (bands.yaml)."""

    one: float  # effective rank at and below which all images look alike
    few: float  # share of the encoder's width below which the effective rank is too low, if also ...
    fell: float  # ... it is below this share of its highest, or ...
    guesses: float  # ... the spread of predicted rows below this share of its highest
    targets: float  # share of the highest spread of target rows, below which targets are one point


@cache
def limits() -> Limits:
    """The limits that the shipped runs give."""
    bands = yaml.safe_load(Path(__file__).with_name("bands.yaml").read_text())
    well, full, some = (list(bands[name].values()) for name in ("healthy", "full collapse", "dimensional collapse"))
    between = lambda low, high: math.sqrt(max(low) * min(high))  # noqa: E731
    return Limits(
        one=between([one["rank"] for one in full], [one["rank"] for one in (*well, *some)]),
        few=between([one["rank"] / one["width"] for one in some], [one["rank"] / one["width"] for one in well]),
        fell=between([one["rank"] / one["highest"] for one in some], [one["rank"] / one["highest"] for one in well]),
        guesses=between([one["guesses"] for one in some], [one["guesses"] for one in well]),
        targets=between([full[0]["targets"]], [one["targets"] for one in well]),
    )


REMEDIES: Mapping[str, tuple[str, str]] = {
    "diverged": (
        "lower optim.lr, or lengthen its warm-up",
        "clip gradients (optim.clip: 1.0), or try run.precision: fp32",
    ),
    "full collapse": (
        "give the targets a teacher that follows slowly (ema, momentum from 0.99 on), or stop their gradient",
        "normalize the targets (norm: layer), or add a term that keeps variance",
    ),
    "teacher frozen": (
        "lower the teacher's momentum: its horizon, 1 / (1 - momentum) steps, should be a small part of the run",
        "train longer",
    ),
    "dimensional collapse": (
        "raise the teacher's momentum, or average more of its layers as targets (layers: 4)",
        "lower optim.lr; or mask larger blocks, so that copying neighbors no longer does",
    ),
    "not learning": (
        "train longer, or raise optim.lr: compare lr and the loss in the run's curves",
        "make the task harder or easier: look at its masks with `sslzoo draw`",
    ),
    "failed": ("see failure.txt of the run folder; the same command tries again", ""),
    "unknown": ("", ""),
    "healthy": ("", ""),
}


@dataclass(frozen=True)
class Diagnosis:
    """What a run has, why one may say so, and what to try."""

    verdict: str
    evidence: tuple[str, ...]
    hint: str = ""  # a remedy that this run's own settings call for

    @property
    def remedies(self) -> tuple[str, ...]:
        """The two likeliest, likeliest first."""
        return tuple(one for one in (self.hint, *REMEDIES[self.verdict]) if one)[:2]


def diagnose(record: Record) -> Diagnosis:
    """The first sign that a run shows, with what was seen; a run without metrics has nothing to be judged by."""
    failure = (f"it ended at step {record.step}: {State(record.folder).reason or 'no reason was kept'}",)
    failure = failure if record.state == "failed" else ()
    signs = _SIGNS if record.lines else _SIGNS[:1]  # what is not finite may end a run before its first line
    for verdict, sign in signs:
        evidence = tuple(sign(record))
        if evidence:
            return Diagnosis(verdict, evidence, _hint(verdict, record))
    if not record.lines:
        nothing = "no line of metrics yet, so nothing to judge by"
        return Diagnosis("failed" if failure else "unknown", (*failure, nothing))
    return Diagnosis("failed" if failure else "healthy", (*failure, *_vital(record)))


def _hint(verdict: str, record: Record) -> str:
    """A rate that is far too high explains what diverged or collapsed; views are held apart by a term of their own."""
    rate = max(_series(record, "lr"), default=0.0)
    adaptive = (record.tree.get("optim") or {}).get("use") == "adamw"
    if rate < RATE or not adaptive or verdict not in ("diverged", "full collapse", "dimensional collapse"):
        views = verdict == "full collapse" and not record.tree.get("targets")
        return "raise the weight of the loss that holds views apart, or add one: variance, sigreg" if views else ""
    return f"lower optim.lr: it reached {rate:.2g}, and AdamW trains vision transformers with 1e-4 to 2e-3"


def _diverged(record: Record) -> Iterator[str]:
    missing = [int(line["step"]) for line in record.lines if "loss" in line and line["loss"] is None]
    if "not finite" in State(record.folder).failure:
        yield f"it ended for losses or gradients that were not finite, at step {record.step}"
    elif missing:
        yield f"the loss was not finite at step {missing[0]}"
    losses = _series(record, "loss")
    if len(losses) > 8 and min(losses) > 0 and losses[-1] > 100 * sorted(losses)[len(losses) // 2]:
        yield f"the loss ended at {losses[-1]:.3g}, over 100 times its median"


def _full_collapse(record: Record) -> Iterator[str]:
    ranks = _series(record, "rankme")
    if ranks and ranks[-1] <= limits().one:
        yield f"effective rank of the summaries is {ranks[-1]:.2f} (RankMe; 1 is all alike)"
    for key, spread in (*_all_series(record, "/target_std"), *_all_series(record, "/target_unit_std")):
        if spread[-1] < limits().targets * max(spread):
            alike = "point one way" if key.endswith("unit_std") else "of all patches are one point"
            yield f"{key} fell from {max(spread):.3g} to {spread[-1]:.3g}: targets {alike}"
    # Where views are compared with one another, nothing else holds them apart. Measured on scenes: 0.085 of the highest
    # without VICReg's variance, 0.97 and more with it, and in SimCLR, LeJEPA and C-JEPA. A loss that normalizes leaves
    # this scale free, so the rank must have fallen, too: there to 0.67 of its highest.
    if not ranks or ranks[-1] > LOWER * max(ranks):
        return
    for key, spread in _all_series(record, "/prediction_std"):
        if _of_views(key, record) and spread[-1] < limits().guesses * max(spread):
            fell = f"{key} fell from {max(spread):.3g} to {spread[-1]:.3g}: views are compared by what is nearly alike"
            yield f"{fell}, and the effective rank fell from {max(ranks):.1f} to {ranks[-1]:.1f}"


def _of_views(key: str, record: Record) -> bool:
    """Whether a metric is of a loss that compares views with one another, and with no target."""
    spec = (record.tree.get("losses") or {}).get(key.partition("/")[0])
    return spec is not None and spec.get("target") is None and spec.get("predict") != CONTEXT


def _frozen(record: Record) -> Iterator[str]:
    """Of a run that goes on, at its planned end: early in a run, every teacher is near its start."""
    kept = replace(record, step=max(record.step, record.steps)).kept
    if kept is not None and kept > FROZEN:
        word = "still holds" if record.step >= record.steps else "will still hold"
        yield f"the teacher {word} {kept:.0%} of its starting weights after {max(record.step, record.steps)} steps"


def _dimensional(record: Record) -> Iterator[str]:
    ranks, width = _series(record, "rankme"), record.facts.get("width")
    if len(ranks) < 2 or ranks[-1] >= (limits().few * width if width else 4.0):
        return
    wide = f", of a width of {width}" if width else ""
    if ranks[-1] < limits().fell * max(ranks):
        yield f"effective rank fell from {max(ranks):.1f} to {ranks[-1]:.1f}{wide}"
    for key, spread in _all_series(record, "/prediction_std"):
        if spread[-1] < limits().guesses * max(spread):
            fell = f"{key} fell from {max(spread):.3g} to {spread[-1]:.3g}"
            yield f"{fell}, at an effective rank of {ranks[-1]:.1f}{wide}"


def _not_learning(record: Record) -> Iterator[str]:
    if not record.figures:
        yield from _not_learning_yet(record)
    for kind in record.figures:
        yield from _no_gain(f"no probe of the {kind}", record.gains(kind))


def _not_learning_yet(record: Record) -> Iterator[str]:
    """From probes during the run (`evaluate.every`), once a tenth of it is done."""
    probed = [line for line in record.lines if any(key.startswith("probe/") for key in line)]
    if not probed or record.step < 0.1 * record.steps:
        return
    last = probed[-1]
    pairs = {key: (last[key], last[f"{key}/untrained"]) for key in last if f"{key}/untrained" in last}
    gains = {key.removeprefix("probe/"): trained - untrained for key, (trained, untrained) in pairs.items()}
    yield from _no_gain(f"no probe at step {last['step']:.0f}", gains)


def _no_gain(which: str, gains: Mapping[str, float]) -> Iterator[str]:
    """Where no probe gained anything, that and the best of them."""
    if gains and all(gain <= GAIN for gain in gains.values()):
        best = max(gains, key=lambda key: gains[key])
        yield f"{which} is {GAIN} points above the untrained encoder; best: {best} {gains[best]:+z.1f}"


_SIGNS = (
    ("diverged", _diverged),
    ("full collapse", _full_collapse),
    ("teacher frozen", _frozen),
    ("dimensional collapse", _dimensional),
    ("not learning", _not_learning),
)


def _vital(record: Record) -> Iterator[str]:
    losses, ranks = _series(record, "loss"), _series(record, "rankme")
    if losses:
        yield f"loss {losses[0]:.4g} at first, {losses[-1]:.4g} at last"
    if ranks:
        yield f"effective rank between {min(ranks):.1f} and {max(ranks):.1f}, {ranks[-1]:.1f} at last"
    yield from map(_gained, record.figures, [record] * len(record.figures))
    if not record.figures:
        yield "not probed yet, so whether it learns is not known: `sslzoo eval`"


def _all_series(record: Record, ending: str) -> Iterator[tuple[str, Sequence[float]]]:
    """Every metric of this ending that was ever finite, by its name."""
    for key in sorted({key for line in record.lines for key in line if key.endswith(ending)}):
        if values := _series(record, key):
            yield key, values


def _gained(kind: str, record: Record) -> str:
    """On how many of its figures a network is above and below the same encoder untrained."""
    gains, images = record.gains(kind), record.evaluated[kind].images("test")
    if not gains:
        return f"the {kind} was not compared with the same encoder untrained: `sslzoo eval RUN --untrained`"
    above, below = [name for name in gains if gains[name] > GAIN], [name for name in gains if gains[name] < -GAIN]
    words = f"{kind} above untrained on {len(above)} of {len(gains)} figures"
    if below:
        worst = min(below, key=lambda name: gains[name])
        words += f", below untrained on {len(below)} of {len(gains)} (most: {worst} {gains[worst]:+z.1f})"
    return words + (f", of {images} test images" if images else "")


def _series(record: Record, key: str) -> Sequence[float]:
    values = [line.get(key) for line in record.lines]
    return [value for value in values if value is not None and math.isfinite(value)]
