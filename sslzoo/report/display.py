"""How does a person see a run go on? A bar on a terminal, plain lines elsewhere and in the run folder's log.txt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sslzoo.progress import Progress as At

EVERY = 10.0  # seconds between plain lines, at least


class Display:
    """Shows lines of metrics; use as a context manager."""

    def __init__(self, log: Path | None = None) -> None:
        self.console = Console()
        self._log = None if log is None else Console(file=log.open("a"), width=120)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, numbers="", visible=False)
        self._started: tuple[float, int] | None = None
        self._spoke = 0.0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._log is not None:
            self._log.file.close()

    def say(self, text: str) -> None:
        """A line for a person."""
        self.print(text, markup=False, highlight=False, soft_wrap=True)

    def print(self, what: Any, **how: Any) -> None:
        """Prints what rich can print, and logs it."""
        self.console.print(what, **how)
        self._note(what, **how)

    def _note(self, what: Any, **how: Any) -> None:
        if self._log is not None:
            self._log.print(what, **how)
            self._log.file.flush()

    def show(self, at: At, line: Mapping[str, float]) -> None:
        """A line of metrics."""
        numbers = f"loss {line['loss']:.4f}  {line['images_per_second']:,.0f} images/s"
        done = at.step + 1
        if self.console.is_terminal:
            self._bar.update(self._task, completed=done, total=at.steps, numbers=numbers, visible=True)
        now = time.monotonic()
        self._started = self._started or (now, done)
        if at.last or now - self._spoke >= EVERY:
            self._spoke = now
            text = f"step {done}/{at.steps}  {numbers}  data {line['data_wait']:.0%}  {self._left(at, now)}"
            (self._note if self.console.is_terminal else self.say)(text)

    def _left(self, at: At, now: float) -> str:
        since, first = self._started or (now, at.step + 1)
        done = at.step + 1 - first
        if not done:
            return "left ?"
        seconds = int((now - since) / done * (at.steps - at.step - 1))
        return f"left {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
