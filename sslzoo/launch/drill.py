"""Does a run survive here? A rehearsal: one run unbroken, one stopped and resumed, and what they give compared.

Where they differ, a second unbroken run is the control: kernels that do not sum in a fixed order, as those of GPUs,
give every run other last digits, and AdamW makes whole steps of them where gradients are next to nothing.
"""

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
from sslzoo.launch import profile, slurm
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
    bound: float = 0.0  # what that tensor may differ by, for unbroken runs do here

    @property
    def exact(self) -> bool:
        """Bit for bit."""
        return self.weights == 0 and not self.metrics

    @property
    def sound(self) -> bool:
        """No more than unbroken runs differ by among themselves."""
        return self.exact or (self.bound > 0 and self.weights <= self.bound)

    def __str__(self) -> str:
        course = f"stopped after step {self.stopped_at} of {self.steps}, resumed, {self.repeated} steps done twice\n"
        if self.exact:
            return course + "weights and metrics equal the unbroken run's bit for bit: this run survives here"
        if self.sound:
            names = f"; these metrics differ in their last digits: {', '.join(self.metrics)}" if self.metrics else ""
            return (
                f"{course}{self.where} differs most from the unbroken run's, by {self.weights:.1e} of its largest "
                f"number{names}\n"
                f"the run resumes: unbroken runs differ here too, so {self.bound:.1e} is allowed"
            )
        what = f"{self.where} differs from the unbroken run's by {self.weights:.1e} of its largest number"
        what = what if self.weights else f"metrics differ: {', '.join(self.metrics)}"
        allowed = f"{self.bound:.1e} is allowed" if self.bound else "unbroken runs do not differ here"
        return f"{course}{what}, and {allowed}: do NOT trust resuming"


NAMES = ("unbroken", "broken")
CONTROL = "control"
# A run that resumed may differ by so many times what an unbroken one does, of each tensor; and, where those differ at
# all, by so much: data parallel on GPUs orders its sums anew after a start.
TIMES, LEAST = 10.0, 1e-3


def empty(folder: Path) -> None:
    """Removes the runs of an earlier rehearsal.

    Raises:
        UserError: what lies there is no run of a rehearsal, or one that still waits or runs.
    """
    for run in (folder / name for name in (*NAMES, CONTROL)):
        if run.exists() and not (run / "drill.txt").is_file():
            raise RunError(f"{run} is no run of an earlier drill, and a drill would replace it; choose another --out")
        refuse_if_active(run)
    for run in (folder / name for name in (*NAMES, CONTROL)):
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        (run / "drill.txt").write_text("A rehearsal of sslzoo drill; the next one replaces this folder.\n")


def short(element: Element, steps: int) -> Element:
    """The same run, short, saving rarely and telling every step."""
    from sslzoo.recipe.recipe import GROUPS, change, warmups

    sets = [f"run.steps={steps}", f"run.save_every={10 * steps}", "run.log_every=1", "run.monitor=0"]
    for place, warm in warmups(element.recipe, element.installed):
        if warm.unit == "steps" and warm.amount > steps:  # else the short run would be refused
            pattern, _, key = place.removeprefix(f"{GROUPS}.").rpartition(".")  # a pattern may hold dots of its own
            place = f'{GROUPS}."{pattern}".{key}' if place.startswith(GROUPS) else place
            sets.append(f"{place}.warmup.steps={steps}")
    recipe = change(element.recipe, element.installed, sets)
    return replace(element, recipe=replace(recipe, evaluate=None))


def here(element: Element, say: Say) -> Verdict:
    """Rehearses in processes of this machine."""
    from sslzoo.recipe.resuming import claim

    whole, broken, control = (element.folder / name for name in (*NAMES, CONTROL))
    for folder in (whole, broken, control):
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
    if (verdict := compare(whole, broken)).exact:
        return verdict
    say(f"they differ, by {verdict.weights:.1e}; a second run, unbroken, tells what that means here")
    _finish(start(control))
    return compare(whole, broken, control)


def on_cluster(element: Element, asked: Asked, say: Say) -> Verdict:
    """Rehearses with jobs of a cluster; where its profile says `requeue: false`, with another job that resumes."""
    whole, broken, control = (replace(element, folder=element.folder / name) for name in (*NAMES, CONTROL))
    steps = element.recipe.run.steps or 0
    try:
        for one in (whole, broken):
            _submit(one, asked, say)
        _wait(broken.folder, f"reach step {steps // 3}", lambda row: (row.step or 0) >= steps // 3)
        job = State(broken.folder).launch["job"]
        say(f"job {job} is sent SIGTERM, as before a preemption")
        subprocess.run(["scancel", "--signal=TERM", job], capture_output=True)  # `compare` tells if none was stopped
        if not profile.load(asked.cluster, element.installed).requeues:
            say(f"{asked.cluster} queues no job again, so the run is resumed as `sslzoo resume` does")
            if _wait(broken.folder, "stop", lambda row: row.state in ("stopped", "done")).state == "stopped":
                _submit(broken, asked, say)
        for one in (whole, broken):
            _wait(one.folder, "end", lambda row: row.state == "done")
        if (verdict := compare(whole.folder, broken.folder)).exact:
            return verdict
        say(f"they differ, by {verdict.weights:.1e}; a second run, unbroken, tells what that means here")
        _submit(control, asked, say)
        _wait(control.folder, "end", lambda row: row.state == "done")
        return compare(whole.folder, broken.folder, control.folder)
    except BaseException:  # Ctrl-C too: a drill that is broken off leaves no job behind
        left = [job for one in (whole, broken, control) for job in active(one.folder)]
        if left:
            slurm.cancel(left)
            say(f"cancelled: job {', '.join(left)}")
        raise


def _submit(element: Element, asked: Asked, say: Say) -> None:
    (job,) = submit([element], asked, sys.argv[1:])
    say(f"job {job}: {element.folder}")


def compare(whole: Path, broken: Path, control: Path | None = None) -> Verdict:
    """What finished runs give: one unbroken, one that was stopped, and another unbroken one that tells what is allowed.

    Raises:
        RunError: one of them did not finish, or the second was never stopped.
    """
    step, gaps, metrics = _differences(whole, broken)
    attempts = State(broken).attempts
    if len(attempts) < 2:
        raise RunError(f"{broken} ended before the signal stopped it, so nothing was rehearsed: ask for more --steps")
    allowed = dict.fromkeys(gaps, 0.0)
    if control is not None:
        _, own, others = _differences(whole, control)
        if others or any(own.values()):
            allowed = {name: max(LEAST, TIMES * gap) for name, gap in own.items()}
    where = max(gaps, key=lambda name: gaps[name] / (allowed[name] or 1.0))
    repeated = sum(attempt["repeats"] for attempt in attempts)
    return Verdict(step, attempts[-1]["from"], repeated, gaps[where], where, metrics, allowed[where])


def _differences(whole: Path, other: Path) -> tuple[int, dict[str, float], tuple[str, ...]]:
    """Steps of two runs, how much each tensor differs, and the metrics that do."""
    one, two = (checkpoint.newest(Folder(folder).checkpoints, _silent) for folder in (whole, other))
    if one is None or two is None or one.step != two.step:
        raise RunError(f"a run did not finish; see {whole} and {other}")
    if one.tensors.keys() != two.tensors.keys():
        raise RunError(
            f"the two runs saved other tensors: {', '.join(sorted(one.tensors.keys() ^ two.tensors.keys()))}"
        )
    gaps = {name: _gap(x, two.tensors[name]) for name, x in one.tensors.items() if not _counts(name)}
    lines = zip(*(Folder(folder).metrics.read() for folder in (whole, other)), strict=True)
    metrics = {key for a, b in lines for key in a if key not in TIMING and a[key] != b.get(key)}
    return one.step, gaps, tuple(sorted(metrics))


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


def _wait(folder: Path, what: str, until: Callable[[Row], bool]) -> Row:
    """Waits for a run on a cluster: in the queue without limit, then an hour; returns what is known of it then."""
    begun = time.monotonic()
    while not until(row := rows([folder])[0]):
        waits = row.state == "pending"
        begun = time.monotonic() if waits else begun
        if row.state in ("failed", "cancelled", "done"):
            raise RunError(f"{folder} did not {what}: {row.state}: {row.reason}")
        if time.monotonic() - begun > PATIENCE:
            raise RunError(f"{folder} did not {what} within an hour")
        time.sleep(2 if waits else 0.5)
    return row


def _silent(_text: str) -> None:
    """A damaged checkpoint shows in the comparison."""
