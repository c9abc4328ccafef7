"""How does a person see a run go on? A bar on a terminal, plain lines elsewhere and in the run folder's log.txt.

A line that cannot be written is not worth a run: a terminal that was closed and a disk that is full are given up.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sslzoo.errors import printable
from sslzoo.progress import Progress as At
from sslzoo.run.clock import hours

EVERY = 10.0  # seconds between plain lines, at least


class _Lossy:
    """A text stream that is given up, its words lost, when it cannot be written any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.given_up = False

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def close(self) -> None:
        self.flush()
        self._stream.close()

    def _give_up(self) -> None:
        """Leads the stream to nowhere: what it holds back must not fail again when the process ends."""
        self.given_up = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):  # closed, or no file
            self._stream = io.StringIO()
        finally:
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """Shows lines of metrics; use as a context manager."""

    def __init__(self, log: Path | None = None) -> None:
        self.console = Console(file=None if sys.stdout is None else _Lossy(sys.stdout))  # type: ignore[arg-type]
        self._lines = None if log is None else self._opened(log)
        self._log = None if self._lines is None else Console(file=self._lines, width=120)  # type: ignore[arg-type]
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, numbers="", left="?", visible=False)
        self._spoke = 0.0

    def _opened(self, log: Path) -> _Lossy | None:
        """The log to write on; None, told, where there can be none: a folder has its name, or a link to nowhere."""
        try:  # a pipe that nobody reads would be waited for
            handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        except OSError as error:
            told = printable(f"warning: {log} cannot be written: {error.strerror}; nothing is logged")
            self.console.print(told, markup=False, highlight=False, soft_wrap=True)
            return None
        return _Lossy(os.fdopen(handle, "a", errors="backslashreplace"))

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._lines is not None:
            self._lines.close()

    def say(self, text: str) -> None:
        """A line for a person."""
        self.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def print(self, what: Any, **how: Any) -> None:
        """Prints what rich can print, and logs it."""
        self.console.print(what, **how)
        self._note(what, **how)

    def _note(self, what: Any, **how: Any) -> None:
        if self._log is None or self._lines is None or self._lines.given_up:
            return
        self._log.print(what, **how)
        self._lines.flush()
        if self._lines.given_up:
            self.console.print("warning: the log could not be written, and is given up", markup=False)

    def show(self, at: At, line: Mapping[str, float], left: float) -> None:
        """A line of metrics; `left` are the seconds to the end of the run."""
        numbers = f"loss {line['loss']:.4f}  {line['images_per_second']:,.0f} images/s"
        done = at.step + 1
        if self.console.is_terminal:
            self._bar.update(
                self._task, completed=done, total=at.steps, numbers=numbers, left=hours(left), visible=True
            )
            if at.last:  # what comes then, such as probing, is not training: the bar stays above it, as it is
                self._bar.stop()
        now = time.monotonic()
        if at.last or now - self._spoke >= EVERY:
            self._spoke = now
            text = f"step {done}/{at.steps}  {numbers}  data {line['data_wait']:.0%}  left {hours(left)}"
            (self._note if self.console.is_terminal else self.say)(text)
