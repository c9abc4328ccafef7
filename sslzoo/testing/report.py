"""How are checks run, and what came of them: what was expected, what came, the smallest input that shows it?

Checks run in the order of their family's list, quick ones first, and each is told as soon as it is known. A check that
needs another one's contract is left out while that is broken. An error in the part's own code is a finding about the
part; any other is a fault of the checks, and told as that.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from sslzoo.errors import UserError
from sslzoo.plugins import exit_raises, raised_in

Make = Callable[..., Any]
SECONDS = 120.0  # a check that takes longer is taken to be endless
ENDLESS = (f"an answer within {SECONDS:.0f} s", "none: the part seems to loop without end")
LIMIT = 600.0  # seconds for all checks of a part


class Violation(Exception):  # noqa: N818 - a finding about a part, not an error of this code
    """A contract is not kept."""

    def __init__(self, expected: str, came: str, smallest: str = "") -> None:
        self.expected, self.came, self.smallest = expected, came, smallest
        super().__init__(expected, came, smallest)  # so that it can be sent from another process

    def __str__(self) -> str:
        return f"expected {self.expected}; came {self.came}"


class ContractError(AssertionError):
    """A part does not keep its contract; the message is the whole report."""


class Skip(Exception):  # noqa: N818 - no error
    """A check does not apply to this part; the reason."""


class _Late(BaseException):
    """Time is over; no part catches this by accident."""


@dataclass(frozen=True, eq=False)
class Check:
    """One check: takes what makes the part; returns a remark, or raises Violation."""

    call: Callable[[Make], str | None]
    needs: tuple[Check, ...] = ()  # while one of these is broken, this one says nothing
    slow: bool = False  # left out by `fast`

    @property
    def name(self) -> str:
        """The function's name, which `only` takes."""
        return self.call.__name__  # type: ignore[attr-defined]

    @property
    def says(self) -> str:
        """What a part that passes does: the first line of its docstring."""
        return (self.call.__doc__ or self.name).strip().split("\n")[0].rstrip(".")


def check(*needs: Check, slow: bool = False) -> Callable[[Callable[[Make], str | None]], Check]:
    """Marks a function as a check that means something only if `needs` are kept."""
    return partial(Check, needs=needs, slow=slow)


@dataclass(frozen=True)
class Result:
    """What came of one check."""

    name: str
    says: str
    state: str  # ok, failed, skipped (does not apply), left out, or fault: the check itself broke
    remark: str = ""
    expected: str = ""
    came: str = ""
    smallest: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "failed": "FAILED ", "fault": "FAULT  "}.get(self.state, "-      ")
        lines = [f"{mark}{self.says}" + (f"  ({self.remark})" if self.remark else "")]
        if self.state == "failed":
            lines += [f"         expected  {self.expected}", f"         came      {self.came}"]
            lines += [f"         smallest  {self.smallest}"] if self.smallest else []
        if self.state == "fault":
            lines += ["         a fault of sslzoo's check, not of your part: please report it", f"         {self.came}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What came of every check of a part."""

    part: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed, and no check broke."""
        return not self.failed and not self._in("fault")

    @property
    def failed(self) -> tuple[Result, ...]:
        """What failed."""
        return self._in("failed")

    def _in(self, state: str) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.state == state)

    @property
    def head(self) -> str:
        """The verdict in a line, and what was left out."""
        failed, faults, left = (len(self._in(state)) for state in ("failed", "fault", "left out"))
        many = len(self.results)
        verdict = "keeps its contract"
        if failed:
            verdict = f"{failed} of {many} checks failed" if many > 1 else "a check failed"
        elif faults:
            verdict = f"not known: {faults} of {many} checks broke, which is a fault of sslzoo's"
        names = ", ".join(result.name for result in self._in("left out"))
        return f"{self.part}: {verdict}" + (f" ({left} left out: {names})" if left else "")

    def __str__(self) -> str:
        return "\n".join([self.head, *(str(result) for result in self.results if result.state != "left out")])


def run(
    part: str,
    checks: Sequence[Check],
    make: Make,
    *,
    tell: Callable[[Result], object] = lambda _: None,
    fast: bool = False,
    limit: float = LIMIT,
) -> Report:
    """Runs checks one after another, each told as soon as it is known; `limit` bounds the whole, in seconds."""
    results, broken, until = [], set(), time.monotonic() + limit
    for one in checks:
        first = next((need for need in one.needs if need in broken), None)
        left = until - time.monotonic()
        if first is not None:
            result = Result(one.name, one.says, "left out", f"first mend: {first.says}")
        elif fast and one.slow:
            result = Result(one.name, one.says, "left out", "slow")
        elif left <= 0:
            result = Result(
                one.name, one.says, "failed", "", f"all checks within {limit:g} s", "no time was left for it"
            )
        else:
            late = (f"all checks within {limit:g} s", "this one had not ended") if left < SECONDS else ENDLESS
            result = _one(one, make, min(SECONDS, left), late)
        if result.state in ("failed", "fault") or first is not None:
            broken.add(one)
        results.append(result)
        tell(result)
    return Report(part, tuple(results))


def needed(one: Check, checks: Sequence[Check]) -> tuple[Check, ...]:
    """A check after all that it needs, in the family's order."""
    wanted, todo = {one}, [one]
    while todo:
        new = set(todo.pop().needs) - wanted
        wanted |= new
        todo += new
    return tuple(other for other in checks if other in wanted)


def _one(one: Check, make: Make, seconds: float, late: tuple[str, str]) -> Result:
    try:
        with _within(seconds), exit_raises():
            remark = one.call(make)
    except Violation as found:
        return Result(one.name, one.says, "failed", "", found.expected, found.came, found.smallest)
    except Skip as reason:
        return Result(one.name, one.says, "skipped", str(reason))
    except _Late:
        return Result(one.name, one.says, "failed", "", *late)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a part that ends the process would look like one that passes
        came = raised(error, make)
        if came:
            return Result(one.name, one.says, "failed", "", "no error", came)
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        return Result(one.name, one.says, "fault", came=f"{type(error).__name__}: {error} ({where})")
    return Result(one.name, one.says, "ok", remark or "")


def raised(error: BaseException, make: Make) -> str:
    """An error that arose inside the part, with the line of the part's own code; nothing if it arose elsewhere.

    One on the way back through what a part gave is the part's: no line of its own is left in it.
    """
    of = make.func if isinstance(make, partial) else make
    where = raised_in(of, error)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    inside = isinstance(of, type) and any(isinstance(frame.f_locals.get("self"), of) for frame in frames)
    if not (where or inside) and _in_backward(error):
        where = " (in the gradient of what it gave: was it detached, or changed in place?)"
    return f"{type(error).__name__}: {error}{where}" if where or inside else ""


def _in_backward(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).parts[-3:] == ("torch", "autograd", "graph.py")


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Ends what takes longer, by _Late; one inside another keeps the earlier end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise _Late

    started, outer = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)[0]
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, outer) if outer else seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, outer - (time.monotonic() - started)))


@contextmanager
def patience(seconds: float, smallest: str, came: str = "none: the part seems to loop without end") -> Iterator[None]:
    """Inside a check: what takes longer than this is too slow, and `smallest` shows it."""
    started = time.monotonic()
    try:
        with _within(seconds):
            yield
    except _Late:
        if time.monotonic() - started < 0.9 * seconds:
            raise  # a limit around this one was over
        raise Violation(f"an answer within {seconds:.0f} s", came, smallest) from None
