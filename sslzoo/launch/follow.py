"""How far is a run, and why did it end? The run folder's own word beside SLURM's, which may have no accounting."""

from __future__ import annotations

import glob
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslzoo.errors import RunError, UserError, is_no_run
from sslzoo.launch import slurm
from sslzoo.run.folder import Folder
from sslzoo.run.state import InUse, State, alive


@dataclass(frozen=True)
class Row:
    """What is known of a run."""

    run: str
    state: str  # pending, starting, running, probing, stopped, done, failed, cancelled or lost; not started
    reason: str
    job: str
    nodes: str
    step: int | None
    steps: int | None
    rate: float | None  # images a second
    left: float | None  # seconds
    restarts: int
    repeated: int  # steps done twice after restarts
    loss: float | None
    rankme: float | None

    def json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


OF_RUNS = ("recipe.yaml", "state.json")  # either tells a run folder


def is_run(path: Path) -> bool:
    """Whether a folder holds a run: a recipe, or what a run tells of itself."""
    return any((path / name).is_file() for name in OF_RUNS)


def folders(path: Path) -> list[Path]:
    """The run folders at or below a path.

    Raises:
        UserError: there is none.
    """
    if is_run(path):
        return [path]
    walked = os.walk(path)  # passes over what cannot be opened
    found = sorted(Path(path) for path, _, names in walked if set(OF_RUNS) & set(names))
    if not found:
        raise is_no_run(path, "is no run folder and holds none: there is no recipe.yaml in or below it")
    return found


def rows(runs: Sequence[Path]) -> list[Row]:
    """What is known of each run; SLURM is asked once for all."""
    answers = slurm.ask([State(run).launch.get(name, "") for run in runs for name in ("job", "probing")])
    return [_row(run, answers) for run in runs]


def _row(run: Path, answers: dict[str, slurm.Answer]) -> Row:
    state, (lines, torn) = State(run), Folder(run).metrics.found()
    now, launch, attempts = state.now, state.launch, state.attempts
    job = launch.get("job", "")
    word, reason, nodes = _state(state, now, answers.get(job))
    probing = answers.get(launch.get("probing", ""))
    if word == "done" and probing is not None and probing.state != "COMPLETED":
        reason = f"probing, job {launch['probing']}: {probing.state.lower()}"
    faults = [fault for fault in (Folder(run).fault, torn, *state.faults) if fault]
    last = lines[-1] if lines else {}
    moving = word == "running"
    return Row(
        run=str(run),
        state=word,
        reason="; ".join([reason] * bool(reason) + faults),
        job=job,
        nodes=nodes,
        step=now.get("step"),
        steps=now.get("steps"),
        rate=now.get("rate") if moving else None,
        left=now.get("left") if moving else None,
        restarts=max(0, len(attempts) - 1),
        repeated=sum(one["repeats"] for one in attempts),
        loss=last.get("loss"),
        rankme=next((line["rankme"] for line in reversed(lines) if "rankme" in line), None),
    )


def _state(state: State, now: dict[str, Any], answer: slurm.Answer | None) -> tuple[str, str, str]:
    """State, reason and nodes: SLURM's word for what SLURM knows better, the run folder's for the rest."""
    own = now.get("state", "pending" if state.launch else "not started")
    why = state.reason
    if answer is not None and not answer.ended:
        waiting = answer.state in ("PENDING", "REQUEUED", "CONFIGURING", "REQUEUE_HOLD", "SUSPENDED")
        busy = own if own in ("running", "probing") else "starting"
        return "pending" if waiting else busy, answer.reason, answer.nodes
    if answer is not None and answer.state.startswith("CANCELLED") and own != "done":
        return "cancelled", "", answer.nodes
    if own == "done":
        return own, "", answer.nodes if answer else now.get("host", "")
    if own == "failed":
        return own, why, answer.nodes if answer else now.get("host", "")
    if answer is not None:
        by_its_code = answer.state.startswith(("FAILED", "PREEMPTED")) and not why
        if by_its_code and own == "stopped" and (now.get("time") or 0) > (state.launch.get("time") or 0):  # by this job
            told = f"it saved and left, and was not queued again; `sslzoo resume {state.folder}` goes on"
            return own, told, answer.nodes
        return "failed", why or f"SLURM: {answer.state} {answer.reason}".strip(), answer.nodes
    if own in ("running", "probing") and not alive(now):
        return "lost", "its process is gone; the same command goes on", now.get("host", "")
    return own, why, now.get("host", "")


def active(run: Path) -> dict[str, slurm.Answer]:
    """The jobs of a run that wait or run, by number: its training, its probing, and what follows."""
    launch = State(run).launch
    jobs = [launch.get("job", ""), launch.get("probing", ""), *(launch.get("then") or ())]
    answers = slurm.ask(jobs)
    training = answers.get(jobs[0])
    if training is not None and training.ended and training.state != "COMPLETED":
        return {}  # SLURM is about to remove what waits for its success
    return {job: answers[job] for job in jobs if job in answers and not answers[job].ended}


def log_files(run: Path) -> list[Path]:
    """Logs of a run's processes, by rank; a run started by hand has one.

    Raises:
        UserError: there is none yet.
    """
    launch = State(run).launch
    found: list[Path] = []
    if launch.get("job"):
        logs = Path(launch["logs"]).glob(f"{glob.escape(launch['job'])}_*_log.out")
        found = sorted((path for path in logs if _rank(path) is not None), key=lambda path: _rank(path) or 0)
    found = found or [path for path in [run / "log.txt"] if path.is_file()]
    if not found:
        raise UserError(f"{run} has no log yet; `sslzoo status {run}` tells where it stands")
    return found


def _rank(log: Path) -> int | None:
    """The process whose log this is, from JOB_RANK_log.out."""
    text = log.stem.split("_")[-2]
    return int(text) if text.isdecimal() else None


def cancel(run: Path) -> str:
    """Ends a run, on SLURM or on this machine; says what was done.

    Raises:
        UserError: it does not run, or elsewhere.
    """
    if jobs := list(active(run)):
        slurm.cancel(jobs)
        told = f"job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)} cancelled"
        if State(run).launch["job"] not in jobs:
            return f"{told}, which followed the training; `sslzoo eval {run}` probes"
        with suppress(RunError):  # SLURM remembers it too
            State(run).tell("cancelled")
        return f"{told}; `sslzoo resume {run}` goes on from its last checkpoint"
    (row,) = rows([run])
    now = State(run).now
    if row.state not in ("running", "probing"):
        raise UserError(f"{run} does not run: it is {row.state}")
    if now.get("host") != socket.gethostname():
        raise UserError(f"{run} runs on {now.get('host')}; cancel it there")
    if not now.get("pid"):
        raise UserError(f"{run} does not tell its process; end it by hand")
    with suppress(InUse):
        State(run).refuse_if_held()
        raise UserError(f"{run} does not run: nobody holds it, and process {now['pid']} is another by now")
    os.kill(now["pid"], signal.SIGTERM)
    return f"process {now['pid']} was asked to save and leave; `sslzoo resume {run}` goes on"
