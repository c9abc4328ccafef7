"""Does a run survive here? A rehearsal: one run unbroken, one stopped and resumed, and what they give compared."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sslzoo.errors import RunError
from sslzoo.launch import slurm
from sslzoo.launch.follow import Row, active, rows
from sslzoo.launch.submit import Asked, Element, refuse_if_active, submit
from sslzoo.launch.work import start
from sslzoo.run import checkpoint
from sslzoo.run.clock import TIMING
from sslzoo.run.folder import Folder
from sslzoo.run.state import State

Say = Callable[[str], None]
PATIENCE = 3600.0  # seconds to wait for a run that has begun


@dataclass(frozen=True)
class Verdict:
    """What the rehearsal found."""

    steps: int
    stopped_at: int
    repeated: int
    weights: float  # largest difference in any tensor, as a share of the largest number in that tensor
    where: str  # that tensor
    metrics: tuple[str, ...]  # names of metrics that differ, timing aside

    @property
    def exact(self) -> bool:
        """Bit for bit."""
        return self.weights == 0 and not self.metrics

    def __str__(self) -> str:
        course = f"stopped after step {self.stopped_at} of {self.steps}, resumed, {self.repeated} steps done twice\n"
        if self.exact:
            return course + "weights and metrics equal the unbroken run's bit for bit: this run survives here"
        if self.weights < 1e-3:
            names = f"; these metrics differ in their last digits: {', '.join(self.metrics)}" if self.metrics else ""
            return (
                f"{course}{self.where} differs most from the unbroken run's, by {self.weights:.1e} of its largest "
                f"number{names}\n"
                "the run resumes; GPUs do not sum in a fixed order, so the last digits may differ"
            )
        return (
            f"{course}{self.where} differs from the unbroken run's by {self.weights:.1e} of its largest number: "
            "do NOT trust resuming"
        )


NAMES = ("unbroken", "broken")


def empty(folder: Path) -> None:
    """Removes the two runs of an earlier rehearsal.

    Raises:
        UserError: what lies there is no run of a rehearsal, or one that still waits or runs.
    """
    for run in (folder / name for name in NAMES):
        if run.exists() and not (run / "drill.txt").is_file():
            raise RunError(f"{run} is no run of an earlier drill, and a drill would replace it; choose another --out")
        refuse_if_active(run)
    for run in (folder / name for name in NAMES):
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        (run / "drill.txt").write_text("A rehearsal of sslzoo drill; the next one replaces this folder.\n")


def short(element: Element, steps: int) -> Element:
    """The same run, short, saving rarely and telling every step."""
    from sslzoo.recipe.recipe import change, warmups

    sets = [f"run.steps={steps}", f"run.save_every={10 * steps}", "run.log_every=1", "run.monitor=0"]
    for place, warm in warmups(element.recipe, element.installed):
        if warm.unit == "steps" and warm.amount > steps:  # else the short run would be refused
            sets.append(f"{place}.warmup.steps={steps}")
    recipe = change(element.recipe, element.installed, sets)
    return replace(element, recipe=replace(recipe, evaluate=None))


def here(element: Element, say: Say) -> Verdict:
    """Rehearses in processes of this machine."""
    from sslzoo.recipe.resuming import claim

    whole, broken = (element.folder / name for name in NAMES)
    for folder in (whole, broken):
        claim(Folder(folder), element.recipe, element.installed, say)
    steps = element.recipe.run.steps or 0
    say(f"a run of {steps} steps, unbroken")
    _finish(start(whole))
    say("the same, stopped on the way by SIGTERM, as SLURM does before a preemption")
    process = start(broken)
    _reach(broken, steps // 3, lambda: process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    if process.wait(600) != 143:
        raise RunError(f"the run did not leave as it should: exit code {process.returncode}; see {broken}")
    say("and resumed")
    _finish(start(broken))
    return compare(whole, broken)


def on_cluster(element: Element, asked: Asked, say: Say) -> Verdict:
    """Rehearses with jobs of a cluster."""
    whole, broken = (replace(element, folder=element.folder / name) for name in NAMES)
    steps = element.recipe.run.steps or 0
    try:
        for one in (whole, broken):
            (job,) = submit([one], asked, sys.argv[1:])
            say(f"job {job}: {one.folder}")
        _wait(broken.folder, f"reach step {steps // 3}", lambda row: (row.step or 0) >= steps // 3)
        job = State(broken.folder).launch["job"]
        say(f"job {job} is sent SIGTERM, as before a preemption")
        subprocess.run(["scancel", "--signal=TERM", job], capture_output=True)  # `compare` tells if none was stopped
        for one in (whole, broken):
            _wait(one.folder, "end", lambda row: row.state == "done")
        return compare(whole.folder, broken.folder)
    except BaseException:  # Ctrl-C too: a drill that is broken off leaves no job behind
        left = [job for one in (whole, broken) for job in active(one.folder)]
        if left:
            slurm.cancel(left)
            say(f"cancelled: job {', '.join(left)}")
        raise


def compare(whole: Path, broken: Path) -> Verdict:
    """What two finished runs give.

    Raises:
        RunError: one of them did not finish, or the other was never stopped.
    """
    one, other = (checkpoint.newest(Folder(folder).checkpoints, _silent) for folder in (whole, broken))
    if one is None or other is None or one.step != other.step:
        raise RunError(f"a run did not finish; see {whole} and {broken}")
    if one.tensors.keys() != other.tensors.keys():
        raise RunError(
            f"the two runs saved other tensors: {', '.join(sorted(one.tensors.keys() ^ other.tensors.keys()))}"
        )
    attempts = State(broken).attempts
    if len(attempts) < 2:
        raise RunError(f"{broken} ended before the signal stopped it, so nothing was rehearsed: ask for more --steps")
    gap, where = max((_gap(x, other.tensors[name]), name) for name, x in one.tensors.items() if not _counts(name))
    lines = zip(*(Folder(folder).metrics.read() for folder in (whole, broken)), strict=True)
    differ = {key for a, b in lines for key in a if key not in TIMING and a[key] != b.get(key)}
    repeated = sum(attempt["repeats"] for attempt in attempts)
    return Verdict(one.step, attempts[-1]["from"], repeated, gap, where, tuple(sorted(differ)))


def _counts(name: str) -> bool:
    """Whether a tensor is an optimizer's count of steps, and no number that was learnt."""
    return name.startswith("optim.step.")


def _gap(x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number: of one tensor, for each has a size of its own."""
    if x.numel() == 0 or torch.equal(x, y):
        return 0.0
    if x.shape != y.shape:
        return float("inf")
    x, y = x.double(), y.double()
    scale = max(x.abs().max().item(), y.abs().max().item())
    share = (x - y).abs().max().item() / scale
    return share if share == share else float("inf")


def _finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise RunError(f"a run failed with exit code {process.returncode}; see its output.txt")


def _reach(folder: Path, step: int, ended: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while (State(folder).now.get("step") or 0) < step:
        if ended() or State(folder).now.get("state") in ("failed", "done") or time.monotonic() > until:
            raise RunError(f"the run did not reach step {step}: {State(folder).failure or 'see its log'}")
        time.sleep(0.2)


def _wait(folder: Path, what: str, until: Callable[[Row], bool]) -> None:
    """Waits for a run on a cluster: in the queue without limit, then an hour."""
    begun = time.monotonic()
    while not until(row := rows([folder])[0]):
        waits = row.state == "pending"
        begun = time.monotonic() if waits else begun
        if row.state in ("failed", "cancelled", "done"):
            raise RunError(f"{folder} did not {what}: {row.state}: {row.reason}")
        if time.monotonic() - begun > PATIENCE:
            raise RunError(f"{folder} did not {what} within an hour")
        time.sleep(2 if waits else 0.5)


def _silent(_text: str) -> None:
    """A damaged checkpoint shows in the comparison."""
