"""What came of checks: what was expected, what came, and the smallest input that shows it."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sslzoo.errors import UserError

Check = Callable[[Callable[[], Any]], str | None]  # takes what makes the part; returns a remark, or raises Violation
SECONDS = 60.0  # a check that takes longer is taken to be endless


class Violation(Exception):  # noqa: N818 - a finding about a part, not an error of this code
    """A contract is not kept."""

    def __init__(self, expected: str, came: str, smallest: str = "") -> None:
        self.expected, self.came, self.smallest = expected, came, smallest
        super().__init__(f"expected {expected}; came {came}")


class ContractError(AssertionError):
    """A part does not keep its contract; the message is the whole report."""


class Skip(Exception):  # noqa: N818 - no error
    """A check does not apply to this part; the reason."""


@dataclass(frozen=True)
class Result:
    """What came of one check."""

    name: str
    says: str  # first line of the check's docstring
    state: str  # ok, failed or skipped
    remark: str = ""
    expected: str = ""
    came: str = ""
    smallest: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "failed": "FAILED ", "skipped": "-      "}[self.state]
        lines = [f"{mark}{self.says}" + (f"  ({self.remark})" if self.remark else "")]
        if self.state == "failed":
            lines += [f"         expected  {self.expected}", f"         came      {self.came}"]
            lines += [f"         smallest  {self.smallest}"] if self.smallest else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """What came of every check of a part."""

    part: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Result, ...]:
        """What failed."""
        return tuple(result for result in self.results if result.state == "failed")

    def __str__(self) -> str:
        many = len(self.failed)
        failed = f"{many} of {len(self.results)} checks failed" if len(self.results) > 1 else "a check failed"
        head = f"{self.part}: " + (failed if many else "keeps its contract")
        return "\n".join([head, *map(str, self.results)])


def run(part: str, checks: Sequence[Check], make: Callable[[], Any]) -> Report:
    """Runs checks one after another; an error inside the part fails the check it came in."""
    results = tuple(_one(check, make) for check in checks)
    came = {(result.state, result.expected, result.came) for result in results}
    if len(results) > 1 and len(came) == 1 and results[0].expected == "no error":  # it was never made
        says = "It can be made with these keys (--set key=value gives others)"
        results = (Result("made", says, "failed", "", "no error", results[0].came),)
    return Report(part, results)


def _one(check: Check, make: Callable[[], Any]) -> Result:
    name = check.__name__  # type: ignore[attr-defined]
    says = (check.__doc__ or name).strip().split("\n")[0].rstrip(".")
    try:
        with _within(SECONDS):
            remark = check(make)
    except Violation as found:
        return Result(name, says, "failed", "", found.expected, found.came, found.smallest)
    except Skip as reason:
        return Result(name, says, "skipped", str(reason))
    except UserError:
        raise
    except Exception as error:  # whatever a plugin raises is a finding about it
        where = traceback.extract_tb(error.__traceback__)[-1]
        came = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        return Result(name, says, "failed", "", "no error", came)
    return Result(name, says, "ok", remark or "")


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise Violation(f"an answer within {seconds:.0f} s", "none: the part seems to loop without end")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def patience(seconds: float, smallest: str) -> Iterator[None]:
    """Inside a check: what takes longer than this is endless, and `smallest` shows it."""
    try:
        with _within(seconds):
            yield
    except Violation as found:
        raise Violation(found.expected, found.came, found.smallest or smallest) from None
