"""What is a number worth at this step? Constants, lines, half cosines and warm-ups, as pure functions of progress.

    0.05                                                        constant
    {linear: [0.996, 1.0]}                                      from .. to over the run
    {cosine: [0.04, 0.4]}                                       half a cosine, from .. to
    {linear: [0.04, 0.07], over: 30 epochs}                     then constant
    {warmup: {epochs: 40, from: 0, to: 1.0e-3, then: {cosine: 1.0e-6}}}
    {piecewise: {0: 0, 1 epoch: {linear: [1, 0.5]}}}            each from a moment on, over its own piece

Published codes count steps in three ways (`counting`): `zero` (MAE: the first step has x = 0), `one` (I-JEPA, MSN:
the counter is increased before use), `inclusive` (DINO, iBOT: the warm-up reaches its end on its last step).
`stretch: 1.25` plans for 25 % more steps than are run, as MSN and V-JEPA do. `each: epoch` changes the value between
epochs only, counting these in place of steps (the teacher temperature of DINO and iBOT). `truncate: 0.8` leaves what
follows a warm-up at 80 % of its way (CAPI).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from sslzoo.errors import did_you_mean, shown
from sslzoo.progress import Progress

Counting = Literal["zero", "one", "inclusive"]
Shape = Literal["constant", "linear", "cosine"]
Each = Literal["step", "epoch"]
_SHAPES = ("linear", "cosine", "warmup", "piecewise")
_WORDS = (*_SHAPES, "over", "counting", "stretch", "truncate", "each")
_UNITS = ("steps", "epochs")
_DURATION = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(step|epoch)?s?\s*", re.ASCII)
_DURATIONS = "a duration is a number of steps, or such as '3 epochs', '500 steps'"
_LONGEST = 10**9  # steps or epochs
_MOST_STRETCH = 1000
LARGEST = 1e30  # of any number, and one over it the smallest beside 0: float32 holds a little more


@dataclass(frozen=True)
class Duration:
    """A number of steps or epochs: `7`, `"7 steps"`, `"1 epoch"`, `{epochs: 2.5}`."""

    amount: float
    unit: Literal["steps", "epochs"] = "steps"

    @classmethod
    def parse(cls, spec: Any) -> Duration:
        """Reads a duration as it stands in a recipe.

        Raises:
            ValueError: not a duration.
        """
        if isinstance(spec, Duration):
            return spec
        if isinstance(spec, str) and (written := _DURATION.fullmatch(spec)):
            spec = {"epochs" if written[2] == "epoch" else "steps": float(written[1])}
        if isinstance(spec, int | float) and not isinstance(spec, bool):
            spec = {"steps": spec}
        if not isinstance(spec, Mapping) or len(spec) != 1 or next(iter(spec)) not in _UNITS:
            close = did_you_mean(next(iter(spec)), _UNITS) if isinstance(spec, Mapping) and spec else ""
            raise ValueError(f"found {shown(spec)}{close}; {_DURATIONS}")
        ((unit, amount),) = spec.items()
        if not 0 <= (amount := _number(amount)) <= _LONGEST:
            raise ValueError(f"found {shown(amount)} {unit}; {_DURATIONS}, 0 to {_LONGEST:,}")
        return cls(amount, unit)

    def __gt__(self, bound: float) -> bool:
        """For a key that asks for more: Annotated[Duration, Field(gt=0)]."""
        return self.amount > bound

    def steps(self, epoch_steps: int) -> int:
        """In steps, rounded down: 2.3 epochs of 100 steps are 230, though 2.3 * 100 falls short of it by a bit."""
        return int(round(self.amount * (epoch_steps if self.unit == "epochs" else 1), 6))

    def __str__(self) -> str:
        return f"{self.amount:.6f}".rstrip("0").rstrip(".") + f" {self.unit}"  # as `parse` reads it: no exponent

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        return _plain_schema(cls.parse)


@dataclass(frozen=True)
class Schedule:
    """A number that depends on progress: `value = schedule(at)`. Made with `Schedule.parse`."""

    start: float
    peak: float
    end: float
    shape: Shape = "constant"
    warm: Duration = Duration(0)
    over: Duration | None = None
    counting: Counting = "zero"
    stretch: float = 1.0
    truncate: float = 1.0
    each: Each = "step"
    pieces: tuple[tuple[Duration, Schedule], ...] = ()  # each from a moment on, in its own time
    spec: Any = field(default=None, compare=False, repr=False)  # as it stood in the recipe

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 at every moment."""
        if self.pieces:
            return all(piece.is_zero for _, piece in self.pieces)
        return self.start == self.peak == self.end == 0

    @classmethod
    def parse(cls, spec: Any) -> Schedule:
        """Reads a schedule as it stands in a recipe; a Schedule is returned as it is.

        Raises:
            ValueError: not a schedule; the message says what is accepted.
        """
        if isinstance(spec, Schedule):
            return spec
        if not isinstance(spec, Mapping):
            value = _number(spec)
            return cls(value, value, value, spec=spec)
        shapes = [name for name in spec if name in _SHAPES]
        unknown = [name for name in spec if name not in _WORDS]
        if len(shapes) != 1 or unknown:
            close = "".join(did_you_mean(name, _WORDS) for name in unknown[:1])
            raise ValueError(
                f"found keys {_keys(spec)}{close}; a schedule is a number or a mapping with one of "
                "linear, cosine, warmup, piecewise, and at will over, counting, stretch, truncate, each"
            )
        counting, each = spec.get("counting", "zero"), spec.get("each", "step")
        for key, found, words in (("counting", counting, get_args(Counting)), ("each", each, get_args(Each))):
            if found not in words:
                close = did_you_mean(found, words)
                raise ValueError(f"{key}: found {shown(found)}{close}; accepted: {', '.join(words)}")
        stretch, truncate = (_number(spec.get(name, 1.0), f"{name}: ") for name in ("stretch", "truncate"))
        if not 0 < stretch <= _MOST_STRETCH:
            raise ValueError(f"stretch: found {stretch:g}; a factor above 0, at most {_MOST_STRETCH}")
        if not 0 < truncate <= 1:
            raise ValueError(f"truncate: found {truncate:g}; a share above 0, at most 1")
        over = Duration.parse(spec["over"]) if "over" in spec else None
        common = {"over": over, "counting": counting, "stretch": stretch, "each": each, "spec": spec}
        common["truncate"] = truncate
        if shapes[0] == "piecewise":
            return _piecewise(cls, spec)
        if shapes[0] == "warmup":
            return _each(cls(**_warmup(spec["warmup"]), **common))
        ends = spec[shapes[0]]
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise ValueError(f"{shapes[0]}: found {shown(ends)}; two numbers are wanted, [from, to]")
        start, end = map(_number, ends)
        return _each(cls(start, start, end, shapes[0], **common))  # type: ignore[arg-type]

    def __call__(self, at: Progress) -> float:
        """The value at this step."""
        if self.pieces:
            return self._piece(at)
        if self.each == "epoch":
            at = Progress(at.step // at.epoch_steps, math.ceil(at.steps / at.epoch_steps))
        step = at.step + (self.counting == "one")
        warm = self.warm.steps(at.epoch_steps)
        if step < warm:
            span = max(1, warm - (self.counting == "inclusive"))
            return self.start + step / span * (self.peak - self.start)
        total = self.over.steps(at.epoch_steps) if self.over else int(self.stretch * at.steps) - warm
        x = self.truncate * min(1.0, (step - warm) / max(1, total))
        if self.shape == "linear":
            return self.peak + x * (self.end - self.peak)
        if self.shape == "cosine":
            return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * x))
        return self.peak

    def turns(self, epoch_steps: int) -> Iterator[tuple[str, int]]:
        """What changes its course, and at which step: the ends of its warm-up and of `over`, its pieces and their own.

        Between two turns, and from the last one on, it rises or falls all the way, or stays.
        """
        for start, piece in self.pieces:
            begun = start.steps(epoch_steps)
            yield f"the piece from {start} on", begun
            yield from (
                (f"{what} of the piece from {start} on", begun + step) for what, step in piece.turns(epoch_steps)
            )
        of_each = epoch_steps if self.each == "epoch" else 1
        warm, over = ((part or Duration(0)).steps(epoch_steps // of_each) * of_each for part in (self.warm, self.over))
        if warm:
            yield f"the end of the warm-up of {self.warm}", warm
        if over:
            yield f"the end of its {self.over}", warm + over

    def _piece(self, at: Progress) -> float:
        starts = [start.steps(at.epoch_steps) for start, _ in self.pieces]
        number = max((i for i, start in enumerate(starts) if start <= at.step), default=0)
        end = starts[number + 1] if number + 1 < len(starts) else at.steps
        within = Progress(at.step - starts[number], max(1, end - starts[number]), at.epoch_steps)
        return self.pieces[number][1](within)

    # Bounds of a key hold at every step: Annotated[Schedule, Field(ge=0, le=1)].
    def __ge__(self, bound: float) -> bool:
        return min(self.start, self.peak, self.end) >= bound

    def __gt__(self, bound: float) -> bool:
        return min(self.start, self.peak, self.end) > bound

    def __le__(self, bound: float) -> bool:
        return max(self.start, self.peak, self.end) <= bound

    def __lt__(self, bound: float) -> bool:
        return max(self.start, self.peak, self.end) < bound

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        return _plain_schema(cls.parse)


def _each(schedule: Schedule) -> Schedule:
    """Refuses steps where epochs are counted: 8 of them would be 8 epochs."""
    for part in (schedule.warm, schedule.over):
        if schedule.each == "epoch" and part is not None and part.unit == "steps" and part.amount:
            raise ValueError(f"found {part} beside each: epoch, which counts epochs; such as '{part.amount:g} epochs'")
    return schedule


def _piecewise(make: type[Schedule], spec: Mapping[str, Any]) -> Schedule:
    wanted = "{0: a schedule, 30 epochs: another, ...}: from when on, beginning with 0"
    given = spec["piecewise"]
    if len(spec) > 1 or not isinstance(given, Mapping) or not given:
        raise ValueError(f"piecewise: found {shown(spec)}; wanted {wanted}, alone")
    pieces = tuple((Duration.parse(start), Schedule.parse(piece)) for start, piece in given.items())
    units = {start.unit for start, _ in pieces[1:]}
    amounts = [start.amount for start, _ in pieces]
    if amounts[0] != 0 or len(units) > 1 or amounts != sorted(set(amounts)):
        raise ValueError(f"piecewise: found {shown(given)}; wanted {wanted}, rising, in steps or in epochs")
    for (start, piece), (end, _) in pairwise(pieces):
        room = Duration(end.amount - start.amount, end.unit)
        slack = 1 if room.unit == "steps" else 1e-5  # of rounding, such as that of a budget
        if piece.warm.unit == room.unit and piece.warm.amount > room.amount + slack:
            raise ValueError(f"piecewise: a warm-up of {piece.warm} is longer than its piece of {room}")
    values = [x for _, piece in pieces for x in (piece.start, piece.peak, piece.end)]
    return make(min(values), max(values), pieces[-1][1].end, pieces=pieces, spec=spec)


def _warmup(spec: Any) -> dict[str, Any]:
    accepted = "{epochs or steps, from, to, then: {cosine: end} or {linear: end}}"
    if not isinstance(spec, Mapping) or not {"from", "to"} <= set(spec):
        raise ValueError(f"warmup: found {shown(spec)}; wanted {accepted}")
    rest = {name: value for name, value in spec.items() if name not in ("from", "to", "then")}
    if len(rest) != 1 or next(iter(rest)) not in _UNITS:
        wrong = [name for name in rest if name not in _UNITS]
        close = did_you_mean(wrong[0], (*_UNITS, "then")) if wrong else ""
        raise ValueError(f"warmup: found keys {_keys(spec)}{close}; wanted {accepted}")
    try:
        warm = Duration.parse(rest)
    except ValueError as error:
        raise ValueError(f"warmup: {error}") from None
    start, peak, then = _number(spec["from"]), _number(spec["to"]), spec.get("then")
    if then is None:
        return {"start": start, "peak": peak, "end": peak, "warm": warm}
    if not isinstance(then, Mapping) or len(then) != 1 or next(iter(then)) not in ("linear", "cosine"):
        close = did_you_mean(next(iter(then)), ("linear", "cosine")) if isinstance(then, Mapping) and then else ""
        raise ValueError(f"warmup.then: found {shown(then)}{close}; wanted {{cosine: end}} or {{linear: end}}")
    shape, end = next(iter(then.items()))
    return {"start": start, "peak": peak, "end": _number(end), "shape": shape, "warm": warm}


def _number(value: Any, where: str = "") -> float:
    # A person who quotes a number means the number.
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{where}found {shown(value)}; a number is wanted") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}found {shown(value)}; a number is wanted")
    if fault := out_of_range(value):
        raise ValueError(f"{where}found {shown(value)}; {fault}")
    return value


def out_of_range(value: float) -> str:
    """Why arithmetic in float32 would make something else of a number, or nothing."""
    if not abs(value) <= LARGEST:  # nor is nan
        return f"a number of at most {LARGEST:g} is wanted"
    return f"0 or a number of at least {1 / LARGEST:g} is wanted" if 0 < abs(value) < 1 / LARGEST else ""


def _keys(spec: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, list(spec)[:8])) or "none"


def _plain_schema(parse: Any) -> Any:
    from pydantic_core import core_schema

    return core_schema.no_info_plain_validator_function(parse)
