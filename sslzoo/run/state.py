"""What does a run folder say of its run to those outside? Who works on it, how far it is, and why it ended.

launch.json   how it was submitted: command, cluster, job numbers       attempts.jsonl   one line a start
state.json    where it stands, written at every line of metrics          failure.txt      the first error of any process
lock          held by the process that trains; the system frees it when that process dies
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslzoo import files
from sslzoo.errors import RunError

PATIENCE = 90.0  # seconds to wait for a lock: the processes of a lost node take a while to die
HINT = "hint.txt"  # in the run folder: why an attempt ended that may be tried again
STALE = 600.0  # seconds after which a run elsewhere that gave no sign of life counts as gone
BEAT = 60.0  # seconds between signs of life: state.json is touched
_NUMBER = (int, float)
_LAUNCH = files.typed(asked=dict, top=str, code=str, words=list, processes=int, evaluate=bool, job=str, logs=str)
_LAUNCH_TOO = files.typed(probing=str, then=list, time=_NUMBER)
_NOW = files.typed(state=str, host=str, pid=int, job=str, time=_NUMBER, step=int, steps=int, saved=int, saving=_NUMBER)
_NOW_TOO = files.typed(loss=_NUMBER, rate=_NUMBER, left=_NUMBER)
_ATTEMPT = files.typed(
    **{"from": int}, repeats=int, time=_NUMBER, host=str, job=str, restart=int, facts=dict, before=dict
)


def _is_launch(row: dict[str, Any]) -> bool:
    if not (_LAUNCH(row) and _LAUNCH_TOO(row) and all(isinstance(job, str) for job in row.get("then") or ())):
        return False
    return {"asked", "top", "code", "logs"} <= row.keys()


def _is_now(row: dict[str, Any]) -> bool:
    if not (_NOW(row) and _NOW_TOO(row) and isinstance(row.get("state"), str)):
        return False
    counts = all(0 <= (row.get(key) or 0) < 10**15 for key in ("step", "steps", "saved", "saving", "rate", "left"))
    # A process group, or every process of the machine, must never be taken for a run's process.
    return counts and (row.get("pid") is None or row["pid"] > 1)


def _is_attempt(row: dict[str, Any]) -> bool:
    return _ATTEMPT(row) and all(
        isinstance(row.get(key), int) and 0 <= row[key] < 10**15 for key in ("from", "repeats")
    )


class InUse(RunError):  # noqa: N818 - what happened
    """Another process holds the run folder."""


@dataclass(frozen=True)
class State:
    """The files of a run folder that tell of its run. One that is damaged reads as absent; `faults` tells of it."""

    folder: Path

    @property
    def launch(self) -> dict[str, Any]:
        """How it was submitted; empty for a run started by hand."""
        return self._launch()[0]

    @property
    def now(self) -> dict[str, Any]:
        """Where it stands; empty before the first step."""
        return self._now()[0]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Every start: when, where, from which step, and how many steps it repeats."""
        return self._attempts()[0]

    @property
    def faults(self) -> list[str]:
        """A sentence for each of these files that is damaged."""
        return [fault for _, fault in (self._launch(), self._now(), self._attempts()) if fault]

    @property
    def launch_fault(self) -> str:
        """What is wrong with launch.json, or nothing."""
        return self._launch()[1]

    @property
    def begun(self) -> bool:
        """Whether a run was here before, be what tells of it damaged or not."""
        return any(os.path.lexists(self.folder / name) for name in ("state.json", "attempts.jsonl"))

    @property
    def failure(self) -> str:
        """The first error of the last attempt, if it failed."""
        return files.read_text(self.folder / "failure.txt")[0] or ""

    @property
    def reason(self) -> str:
        """The error itself: the last line of the failure."""
        return self.failure.strip().rpartition("\n")[2]

    @property
    def saved(self) -> int:
        """The step of the newest checkpoint that this run remembers; 0 if none was ever saved."""
        now = self.now
        left = now.get("step") or 0 if now.get("state") in ("stopped", "probing", "done") else 0
        return max([now.get("saved") or 0, left, *(one["from"] for one in self.attempts)])

    def write_launch(self, launch: dict[str, Any]) -> None:
        """Remembers how it was submitted."""
        files.write_whole(self.folder / "launch.json", files.written(launch, indent=1))

    def refuse_vanished(self, step: int) -> None:
        """Sees that a run which would begin at the first step has no past; changes nothing.

        Raises:
            RunError: it has; names what is remembered and what to do.
        """
        if step:
            return
        again = f"put them back into {self.folder / 'checkpoints'}, or begin anew in another folder with --out"
        if self.saved:
            now = self.now
            raise RunError(
                f"{self.folder} holds a run that was saved at step {self.saved} of {now.get('steps', '?')} and is "
                f"{now.get('state', 'of unknown state')}, but its checkpoints are gone\n"
                f"a run never starts again by itself: {again}"
            )
        before = [name for name in ("attempts.jsonl", "metrics.jsonl") if files.read_text(self.folder / name)[0]]
        if not self.now and before:
            found = self._now()[1] or f"{self.folder / 'state.json'} is gone"
            raise RunError(
                f"{found}, and there is no checkpoint, so nothing tells how far the run was\n"
                f"if there were checkpoints, {again}; if none was ever saved, remove state.json and "
                f"{' and '.join(before)} there"
            )

    def begin(self, step: int, facts: Mapping[str, Any] | None = None) -> None:
        """A process group starts from `step`; `facts` are of its machine and its arithmetic.

        How the start before ended is kept with it: the state file tells of one at a time.

        Raises:
            RunError: there were checkpoints and are none.
        """
        self.refuse_vanished(step)
        now = self.now
        reached = now.get("step") or step
        attempt = {"from": step, "repeats": max(0, reached - step), "time": time.time(), "host": socket.gethostname()}
        attempt |= {"job": os.environ.get("SLURM_JOB_ID"), "restart": restarts()}
        if now:
            attempt["before"] = {key: now.get(key) for key in ("state", "step", "time")}
        files.append(self.folder / "attempts.jsonl", [attempt | ({"facts": facts} if facts else {})])
        (self.folder / "failure.txt").unlink(missing_ok=True)

    def tell(self, state: str, **more: Any) -> None:
        """Where the run stands now; keeps what is not told anew. Raises RunError if it cannot be written."""
        own = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        now = self.now | own | {"state": state, "time": time.time()} | more
        files.write_whole(self.folder / "state.json", files.written(now, indent=1), lasting=False)

    def fail(self, text: str) -> bool:
        """Notes an error; only the first of all processes counts. Returns whether this was it."""
        try:
            with (self.folder / "failure.txt").open("x", errors="backslashreplace") as file:
                file.write(text.rstrip() + "\n")
            self.tell("failed")
        except (OSError, RunError):
            return False
        return True

    def hint(self, text: str) -> None:
        """Notes for the batch script why an attempt may have ended, where trying again may do; the first counts."""
        with suppress(OSError), (self.folder / HINT).open("x", errors="backslashreplace") as file:
            file.write(text.rstrip() + "\n")

    def refuse_if_held(self) -> None:
        """Raises InUse if a process holds the run folder; changes nothing."""
        if (self.folder / "lock").is_file():
            with self.locked(patience=0.0):
                pass

    @contextmanager
    def locked(
        self, patience: float | None = None, warn: Callable[[str], None] = print, *, most: float = math.inf
    ) -> Iterator[None]:
        """Holds the run folder for this process, and gives signs of life meanwhile.

        Where the file system has no locks, what the state file tells of another process must do; `warn` hears of it.
        A job waits a while for one that is dying, but no longer than `most` seconds, for its other processes wait too.

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
            # A job waits, for nobody is there to start it again a little later.
            moving = min(STALE, most) if patience is None and self.launch and _job() else 0.0
            if patience is None:
                patience = min(PATIENCE, most) if restarts() else 0.0
            if not _locks(file, self._holder, patience):
                self._refuse_if_moving(moving)
                warn(f"warning: the file system of {self.folder} has no locks: never start one run twice at a time")
            with suppress(OSError):  # a full disk; the lock is what counts, not whose name it bears
                os.ftruncate(file.fileno(), 0)
                os.write(
                    file.fileno(), json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **_job()}).encode()
                )
            with self._living():
                yield

    @contextmanager
    def _living(self) -> Iterator[None]:
        """Whoever compiles, probes or takes slow steps writes nothing for long, and is not gone."""
        left = threading.Event()

        def beat() -> None:
            while not left.wait(BEAT):
                with suppress(OSError):
                    os.utime(self.folder / "state.json")

        threading.Thread(target=beat, name="signs of life", daemon=True).start()
        try:
            yield
        finally:
            left.set()

    def _holder(self) -> InUse:
        holder, _ = files.read_object(self.folder / "lock")
        who = ", ".join(f"{key} {value}" for key, value in holder.items()) or "by an unknown process"
        return InUse(f"the run folder {self.folder} is in use ({who}); `sslzoo status {self.folder}` tells more")

    def _refuse_if_moving(self, patience: float) -> None:
        """Without locks: whether a process of this machine lives, or one elsewhere wrote a short while ago."""
        first, until = self.now, time.monotonic() + patience
        if restarts() and first.get("job") == os.environ.get("SLURM_JOB_ID"):
            return  # its own job's attempt before
        while (now := self.now).get("state") in ("running", "probing") and now.get("pid") != os.getpid() and alive(now):
            if time.monotonic() >= until or now.get("time") != first.get("time"):
                raise InUse(
                    f"the run folder {self.folder} seems in use (host {now.get('host')}, pid {now.get('pid')}); its "
                    f"file system has no locks, so a run counts as gone when it gave no sign of life for "
                    f"{STALE / 60:.0f} minutes"
                )
            time.sleep(5)

    def _launch(self) -> tuple[dict[str, Any], str]:
        return files.read_object(self.folder / "launch.json", _is_launch)

    def _now(self) -> tuple[dict[str, Any], str]:
        path = self.folder / "state.json"
        now, fault = files.read_object(path, _is_now)
        if now:
            with suppress(OSError):  # removed meanwhile
                now["time"] = max(now.get("time") or 0, path.stat().st_mtime)
        return now, fault

    def _attempts(self) -> tuple[list[dict[str, Any]], str]:
        return files.read_rows(self.folder / "attempts.jsonl", _is_attempt)


def alive(now: dict[str, Any]) -> bool:
    """Whether the process that wrote last still is; on another machine, whether it gave a sign within ten minutes."""
    if now.get("host") != socket.gethostname() or not now.get("pid"):
        return time.time() - (now.get("time") or 0) < STALE
    try:
        os.kill(now["pid"], 0)
    except PermissionError:
        pass  # another person's process, which lives
    except (ProcessLookupError, OverflowError):
        return False
    return True


def restarts() -> int:
    """How often SLURM has queued this job again."""
    text = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def _locks(file: Any, holder: Callable[[], InUse], patience: float) -> bool:
    """Takes the lock; False where the file system has none."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise holder() from None
            time.sleep(1)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise RunError(f"the run folder cannot be locked: {error}") from error
            return False
        else:
            return True


def _job() -> dict[str, str]:
    return {"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}
