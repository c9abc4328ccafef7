"""What does a run folder say of its run to those outside? Who works on it, how far it is, and why it ended.

launch.json   how it was submitted: command, cluster, job numbers       attempts.jsonl   one line a start
state.json    where it stands, written at every line of metrics          failure.txt      the first error of any process
lock          held by the process that trains; the system frees it when that process dies
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslzoo.errors import RunError

PATIENCE = 90.0  # seconds to wait for a lock: the processes of a lost node take a while to die


class InUse(RunError):  # noqa: N818 - what happened
    """Another process holds the run folder."""


@dataclass(frozen=True)
class State:
    """The files of a run folder that tell of its run."""

    folder: Path

    @property
    def launch(self) -> dict[str, Any]:
        """How it was submitted; empty for a run started by hand."""
        return _read(self.folder / "launch.json")

    @property
    def now(self) -> dict[str, Any]:
        """Where it stands; empty before the first step."""
        return _read(self.folder / "state.json")

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Every start: when, where, from which step, and how many steps it repeats."""
        path = self.folder / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def failure(self) -> str:
        """The first error of the last attempt, if it failed."""
        path = self.folder / "failure.txt"
        return path.read_text() if path.exists() else ""

    @property
    def reason(self) -> str:
        """The error itself: the last line of the failure."""
        return self.failure.strip().rpartition("\n")[2]

    def write_launch(self, told: dict[str, Any]) -> None:
        """Remembers how it was submitted."""
        _write(self.folder / "launch.json", told)

    def begin(self, step: int, steps: int) -> None:
        """A process group starts from `step`.

        Raises:
            RunError: the last two attempts began there too, and did no step.
        """
        before = self.attempts
        reached = self.now.get("step", step)
        told = {"from": step, "repeats": max(0, reached - step), "time": time.time(), "host": socket.gethostname()}
        told |= {"job": os.environ.get("SLURM_JOB_ID"), "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
        with (self.folder / "attempts.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")
        if len(before) >= 2 and all(one["from"] == step for one in before[-2:]) and reached <= step < steps:
            raise RunError(
                f"the last two attempts began at step {step} and did no step, so this one does not try; see "
                f"`sslzoo logs {self.folder}`, and remove {self.folder / 'attempts.jsonl'} to try again"
            )
        (self.folder / "failure.txt").unlink(missing_ok=True)

    def tell(self, state: str, **more: Any) -> None:
        """Where the run stands now; keeps what is not told anew."""
        own = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        _write(self.folder / "state.json", self.now | own | {"state": state, "time": time.time()} | more)

    def fail(self, text: str) -> bool:
        """Notes an error; only the first of all processes counts. Returns whether this was it."""
        try:
            with (self.folder / "failure.txt").open("x") as file:
                file.write(text.rstrip() + "\n")
        except OSError:
            return False
        self.tell("failed")
        return True

    def claim(self, what: str) -> bool:
        """Whether this process is the first of all to claim something."""
        try:
            (self.folder / f".{what}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run folder for this process.

        Raises:
            RunError: it cannot be written.
        InUse: another process holds it; says which.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("a+")
        except OSError as error:
            raise RunError(f"the run folder {self.folder} cannot be written: {error}") from error
        with file:
            _take(file, self.folder)
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **_job()}))
            file.flush()
            yield


def _take(file: Any, folder: Path) -> None:
    patience = PATIENCE if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else 0.0
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(1)
                continue
            file.seek(0)
            told = json.loads(file.read() or "{}")
            who = ", ".join(f"{key} {value}" for key, value in told.items())
            raise InUse(f"the run folder {folder} is in use ({who}); `sslzoo status {folder}` tells more") from None
        else:
            return


def _job() -> dict[str, str]:
    return {"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(path: Path, told: dict[str, Any]) -> None:
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(told, indent=1))
    beside.replace(path)
