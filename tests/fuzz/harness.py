"""Tries seeded cases and says what became of each: valid, a clean error, or a defect (traceback, hang, silent).

A generator is a function (rng, folder) -> Case: it writes what it needs into the empty folder and says which command to
try. The same seed gives the same case. A test tries many and wants no defect:

    def test_recipes(tmp_path):
        assert not tried(recipe, range(200), tmp_path).defects
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from sslzoo import UserError
from sslzoo.cli import cli

SECONDS = 20  # a case that takes longer hangs
MEMORY = 8 << 30  # bytes a case may take beside what the process has

DEFECTS = ("traceback", "hang", "silent")


@dataclass(frozen=True)
class Case:
    """What was done to something good, and the command that should notice."""

    told: str  # what was done, for a person
    words: tuple[str, ...] = ()  # the command line, without `sslzoo`
    call: Callable[[], object] | None = None  # or something to call in place of a command
    wrong: bool = False  # it must be refused: accepting it is silent
    names: tuple[str, ...] = ()  # a refusal names at least one of these; ends of a place or path, say
    codes: tuple[int, ...] = (2,)  # exit codes that say no: a verdict has one of its own
    judge: Callable[[str, str], str] | None = None  # (valid or clean, what was printed) -> what is silently wrong


@dataclass
class Tried:
    """Figures, and the defects with what is needed to see each again."""

    count: Counter[str] = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)
    valid: list[tuple[int, Case]] = field(default_factory=list)

    def __str__(self) -> str:
        figures = ", ".join(f"{self.count[kind]} {kind}" for kind in ("valid", "clean", *DEFECTS))
        return "\n\n".join([f"{self.count.total()} tried: {figures}", *self.defects[:20]])


Generator = Callable[[random.Random, Path], Case]

# What good recipes begin with; their own sections `optim`, `run` and `evaluate` follow.
METHOD = """\
name: good
data: {use: scenes, length: 32, size: 32}
views:
  image: {use: crop, size: 32, scale: [0.3, 1.0]}
masks:
  image: {use: multiblock, min_keep: 1, target_scale: [0.15, 0.2], keep: 0.8}
encoder: {use: vit, width: 24, depth: 1, heads: 3, patch: 8}
predictor: {use: ijepa, width: 24, depth: 1, heads: 3}
targets:
  teacher: {use: ema, momentum: {linear: [0.996, 1.0]}, layers: 1}
losses:
  guess: {use: smooth_l1, predict: predictor.patch, target: teacher.patch, weight: 1.0}
"""


def removed(made: Any) -> Any:
    """A fixture that removes the folder which a cached function made, if a case of the module asked for it."""

    @pytest.fixture(scope="module", autouse=True)
    def after() -> Iterator[None]:
        yield
        if made.cache_info().currsize:
            shutil.rmtree(made())
            made.cache_clear()

    return after


def beyond(quick: int, many: int) -> range:
    """Seeds that `pytest -m fuzz` tries: those after the quick ones, or FUZZ_SEEDS=FIRST:LAST."""
    first, _, last = os.environ.get("FUZZ_SEEDS", f"{quick}:{many}").partition(":")
    return range(int(first), min(int(last), many))


class _Hang(BaseException):
    """No Exception, so that nothing catches it on the way."""


def tried(generator: Generator, seeds: range, folder: Path) -> Tried:
    """Makes and tries a case for each seed, each in a folder of its own."""
    _warm()
    told = Tried()
    for seed in seeds:
        here = folder / f"{generator.__name__}-{seed}"
        here.mkdir()
        case = generator(random.Random(f"{generator.__name__} {seed}"), here)
        kind, why = outcome(case)
        told.count[kind] += 1
        if kind in DEFECTS:
            command = " ".join(case.words) or "a call"
            told.defects.append(f"{kind}: {generator.__name__}, seed {seed}: {case.told}\n{command}\n{why}")
        elif kind == "valid":
            told.valid.append((seed, case))
    print(f"{generator.__name__}: {told}")
    return told


@functools.cache
def _warm() -> None:
    """Everything is imported before the clock runs: the first import takes long, and breaks when it is cut short."""
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(["check", "tiny/ijepa"], standalone_mode=False)


def outcome(case: Case) -> tuple[str, str]:
    """What became of a case, and why a person may believe it."""
    kind, said = _tried(case)
    wrong = case.judge(kind, said) if case.judge and kind in ("valid", "clean") else ""
    return ("silent", f"{wrong}\nit was {kind}, and said: {said[-2000:]}") if wrong else (kind, said)


def _tried(case: Case) -> tuple[str, str]:
    out = io.StringIO()
    try:
        with _bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            if case.call is not None:
                case.call()
            else:
                cli.main(list(case.words), prog_name="sslzoo", standalone_mode=False)
    except _Hang:
        return "hang", f"longer than {SECONDS} s"
    except UserError as error:
        return _refused(case, out.getvalue() + str(error), error.exit_code)
    except click.ClickException as error:
        return _refused(case, out.getvalue() + error.format_message(), error.exit_code)
    except click.Abort:  # a person's Ctrl-C, or a plugin that raises the same
        return _refused(case, out.getvalue() + "Aborted!", 1)
    except SystemExit as left:
        if left.code not in (0, None):
            return _refused(case, out.getvalue(), left.code)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", "".join(traceback.format_exception(error)[-8:])
    return ("silent", "accepted: " + out.getvalue()[-500:]) if case.wrong else ("valid", out.getvalue())


def _refused(case: Case, message: str, code: object) -> tuple[str, str]:
    """A clean error tells its place and is short enough to be read."""
    if code not in case.codes:
        return "silent", f"exit code {code}: {message}"
    if not message.strip() or "Traceback" in message or len(message) > 8000:
        return "traceback", message[:2000]
    if case.names and not any(name in message for name in case.names):
        return "silent", f"the message names none of {case.names}: {message[:2000]}"
    return "clean", message


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """At most so many seconds and bytes. Only the main thread of a process can ask for this.

    Seconds in which a busy machine let others run do not count.
    """
    began, waited = time.monotonic(), _queued()

    def hang(*_: object) -> None:
        left = SECONDS - (time.monotonic() - began) + (_queued() - waited)
        if left <= 0.1:
            raise _Hang
        signal.setitimer(signal.ITIMER_REAL, left)

    before = signal.signal(signal.SIGALRM, hang)
    had = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, had[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, had)


def _queued() -> float:
    """Seconds for which this thread was ready to run and waited for a core."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
