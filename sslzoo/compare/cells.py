"""How are the cells of a study run? One after another or several at a time, here or as one array; none twice."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sslzoo.compare.study import Cell, Study
from sslzoo.errors import RunError, UserError
from sslzoo.launch import slurm
from sslzoo.launch.submit import Asked, Element, submit
from sslzoo.launch.work import start
from sslzoo.recipe.recipe import resolve
from sslzoo.recipe.resuming import claim, refuse
from sslzoo.run.clock import hours
from sslzoo.run.folder import Folder
from sslzoo.run.state import State

LOOK = 1.0  # seconds between looks at running cells
Say = Callable[[str], None]


@dataclass
class Running:
    """A cell that trains, and is probed, in a process of its own."""

    cell: Cell
    process: subprocess.Popen[bytes]
    slot: int = 0  # of as many as run at a time


def refuse_edited(study: Study, *, more: bool = True) -> None:
    """Before anything runs: every cell that has begun is one as the study, and its base recipes, now say it.

    Where `more` is to run, plugins must be those of before, too. Of a cell that has not begun nothing can be mixed up.

    Raises:
        UserError: the study, or a plugin, was edited after some of it ran; names those cells and what changed.
    """
    edited: dict[str, list[str]] = {}  # what changed: in which cells
    complete = all(map(is_done, study.cells))
    for cell in study.cells:
        folder, rows = Folder(cell.folder), []
        folder.refuse_others()
        if is_taken(cell):
            try:
                refuse(folder, cell.recipe, cell.installed)
            except RunError as error:
                rows = [line.strip() for line in str(error).splitlines() if line.startswith(" ")] or [str(error)]
            if more and not complete:  # what is still to run would be made by other code
                rows += folder.upgraded(resolve(cell.recipe, cell.installed))
        if rows:
            edited.setdefault("; ".join(rows), []).append(f"{cell.variant}/seed-{cell.seed}")
    if edited:
        many = sum(map(len, edited.values()))
        raise UserError(
            f"the study, or a recipe it names, was edited after {many} of its {len(study.cells)} cells had begun:\n"
            + "".join(f"  {what}\n    in {', '.join(names)}\n" for what, names in edited.items())
            + f"put it back, remove those folders, or run it elsewhere with --out (here: {study.folder}); "
            f"`sslzoo compare {shlex.quote(str(study.folder))}/*/seed-*` compares what has run, as it ran"
        )


def has_begun(cell: Cell) -> bool:
    """Whether anything was done in a cell's folder, beyond writing down its recipe."""
    folder = Folder(cell.folder)
    return folder.recipe.exists() and (State(cell.folder).begun or folder.checkpoints.exists())


def is_taken(cell: Cell) -> bool:
    """Whether a cell has begun, or may begin at any moment by the recipe that lies there: a job was submitted."""
    return has_begun(cell) or (cell.folder / "launch.json").exists()


def is_done(cell: Cell) -> bool:
    """Whether a cell has been trained to its end."""
    return State(cell.folder).now.get("state") == "done"


def prepare(study: Study) -> list[Cell]:
    """Writes the recipe of each cell to its folder; the cells that are still to be run."""
    refuse_edited(study)
    left = [cell for cell in study.cells if not is_done(cell)]
    for cell in left:
        if not is_taken(cell):
            State(cell.folder).refuse_if_held()  # by a process that is about to begin
            Folder(cell.folder).recipe.unlink(missing_ok=True)  # as the study said it before
        claim(Folder(cell.folder), cell.recipe, cell.installed, print)
    return left


def here(study: Study, jobs: int, console: Console) -> list[str]:
    """Trains and probes what is left of a study in processes of this machine, `jobs` at a time; Ctrl-C saves them all.

    Returns which cells failed; the others were run to their end. One that was trained and could not be probed is none
    of them: `evaluation.evaluate` tries it again.

    Raises:
        UserError: it was stopped; the same command goes on.
    """
    waiting, running, failed = prepare(study), [], []
    stopped = False
    if waiting:
        at_once = f", {jobs} at a time" if jobs > 1 else ""
        many = f"{len(waiting)} of {len(study.cells)} cells to run{at_once}"
        console.print(
            f"{many}; `sslzoo status {study.folder}` tells how far", markup=False, highlight=False, soft_wrap=True
        )
    try:
        with Live(console=console, refresh_per_second=2, transient=True, auto_refresh=False) as live:
            while waiting or running:
                while waiting and len(running) < jobs:
                    free = min(set(range(jobs)) - {one.slot for one in running})
                    running.append(_start(waiting.pop(0), study, jobs, free))
                time.sleep(LOOK)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    name = f"{one.cell.variant}, seed {one.cell.seed}"
                    console.print(_ended(one, name), markup=False, highlight=False)
                    failed += [name] if one.process.returncode and not is_done(one.cell) else []
                if console.is_terminal:
                    live.update(progress(study), refresh=True)
    except KeyboardInterrupt:
        stopped = True
    finally:
        for one in running:
            one.process.send_signal(signal.SIGTERM)
        for one in running:
            one.process.wait()
    if stopped:
        raise UserError("stopped; what ran is saved, and the same command goes on")
    return failed


def _start(cell: Cell, study: Study, jobs: int, slot: int) -> Running:
    """A cell in a process of its own; of several at a time, each has its share of the cores, and its GPU of several."""
    share = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))} if jobs > 1 else {}
    words = ("sslzoo.compare.worker", str(cell.folder), study.keys.networks, str(study.features))
    gpus = _gpus() if jobs > 1 else []
    gpu = gpus[slot % len(gpus)] if len(gpus) > 1 else None
    return Running(cell, start(cell.folder, words, gpu=gpu, **share), slot)


def _gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return (named or list(map(str, range(torch.cuda.device_count()))))[: torch.cuda.device_count()]


def _ended(one: Running, name: str) -> str:
    if one.process.returncode == 0:
        return f"{name}: done"
    if is_done(one.cell):
        return f"{name}: done, but not probed: {_last_line(one.cell.folder / 'output.txt')}"
    reason = State(one.cell.folder).reason or _last_line(one.cell.folder / "output.txt")
    return f"{name}: failed: {reason}"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return lines[-1] if lines else "no word"


def progress(study: Study) -> Table:
    """Where each cell stands, a row each."""
    table = Table("variant", "seed", "state", "step", "loss", "images/s", "left", box=None, header_style="bold")
    for cell in study.cells:
        now = State(cell.folder).now
        moving = now.get("state") == "running"
        table.add_row(
            cell.variant,
            str(cell.seed),
            now.get("state", "waiting"),
            f"{now.get('step', 0)}/{now.get('steps', '?')}" if now else "",
            f"{now['loss']:.4f}" if "loss" in now else "",
            f"{now['rate']:.0f}" if moving and "rate" in now else "",
            hours(now["left"]) if moving and now.get("left") else "",
        )
    return table


def on_cluster(study: Study, asked: Asked, words: Sequence[str], say: Say) -> bool:
    """Submits what is left of a study as one job array, each cell with a job that probes it; whether some goes on.

    Nothing is submitted while some of it waits, runs or is probed, for they share the code.
    """
    launched = [State(cell.folder).launch.get("probing" if is_done(cell) else "job", "") for cell in study.cells]
    active = [job for job, answer in slurm.ask(launched).items() if not answer.ended]
    if active:
        first, *others = dict.fromkeys(job.split("_")[0] for job in active)
        jobs = f"job {first}" + (f" and {len(others)} more" if others else "")
        many = f"{len(active)} of {len(study.cells)} cells"
        say(f"{many} are queued, running or being probed: {jobs}; nothing was submitted")
        say(f"`sslzoo status {study.folder}` follows them; when they have ended, the same command goes on")
        return True
    left = prepare(study)
    if not left:
        return False
    jobs = submit([Element(cell.folder, cell.recipe, cell.installed) for cell in left], asked, words)
    array = jobs[0].split("_")[0]
    say(f"submitted {len(jobs)} cells as job {array}; the same command compares them when they are done")
    return True
