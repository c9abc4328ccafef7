"""How does a recipe become SLURM jobs? Checked, snapshot into run folders, submitted: one job, or an array of runs."""

from __future__ import annotations

import itertools
import os
import shlex
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslzoo.errors import UserError
from sslzoo.launch import profile as profiles
from sslzoo.launch import requeue, slurm, snapshot
from sslzoo.launch.follow import active
from sslzoo.launch.job import Command, Job, Probing
from sslzoo.launch.snapshot import Snapshot
from sslzoo.plugins import Catalogue
from sslzoo.recipe import yamltext
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import Recipe, load
from sslzoo.recipe.resuming import claim, refuse, refuse_upgrade
from sslzoo.run import checkpoint, data, parallel
from sslzoo.run.folder import Folder
from sslzoo.run.state import State


@dataclass(frozen=True)
class Asked:
    """What a person asked of the cluster; kept in the run folder, so that a run can be submitted again."""

    cluster: str
    nodes: int = 1
    gpus: int | None = None  # of a node; the profile's if left out
    time: str | None = None
    evaluate: bool = True
    limit: int | None = None
    then: tuple[str, ...] = ()  # commands for each run that succeeded; the run folder goes where {} stands, or first
    networks: str | None = None  # of which kind are probed: teacher, student or all; the recipe's choice if left out


@dataclass(frozen=True)
class Element:
    """One run: its folder, recipe and parts."""

    folder: Path
    recipe: Recipe
    installed: Catalogue


def elements(
    name: str, sets: Sequence[str], plugins: Sequence[Path], out: Path | None, sweep: Sequence[str], seeds: int | None
) -> list[Element]:
    """The runs a sweep asks for: every combination of its values and seeds, each checked; one run without a sweep.

    Raises:
        UserError: a recipe or the sweep is wrong.
    """
    axes = [_axis(one) for one in sweep]
    axes += [("run.seed", [str(seed) for seed in range(seeds)])] if seeds is not None else []
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        own = [f"{key}={value}" for (key, _), value in zip(axes, values, strict=True)]
        recipe, installed = load(name, [*sets, *own], plugins)
        check(recipe, installed)
        folder = out or recipe.folder
        found.append(Element(folder / _folder_name(own) if axes else folder, recipe, installed))
    folders = [one.folder for one in found]
    if len(set(folders)) < len(folders):
        raise UserError("the sweep names a value twice")
    return found


def plan(found: Sequence[Element], asked: Asked) -> slurm.Plan:
    """What the job of a run, or of all runs of a sweep, asks of the cluster.

    Raises:
        UserError: a batch does not split over its processes, the profile is wrong, or a path cannot stand in a script.
    """
    first = found[0]
    profile = profiles.load(asked.cluster, first.installed)
    gpus = profile.gpus_per_node if asked.gpus is None else asked.gpus
    _refuse_other_gpus(profile, gpus, asked.cluster)
    text = asked.time or profile.time
    try:
        profiles.minutes(text)
    except ValueError as error:
        raise UserError(f"--time: {error}") from error
    for one in found:
        _refuse_unsafe(one.folder)
    top, runs = top_of(found), len(found)
    _refuse_unsafe(top)
    name = f"sslzoo-{first.recipe.name}" + (f"-{runs}-runs" if runs > 1 else "")
    made = slurm.Plan(
        name,
        profile,
        asked.nodes,
        gpus,
        text,
        f"sslzoo {top}",
        folders=tuple(one.folder.resolve() for one in found),
        limit=asked.limit,
    )
    for one in found:
        data.split(one.recipe.run.batch, made.processes, one.recipe.run.micro)
        parallel.copies(made.processes, one.recipe.run.shard)
    return made


def _refuse_other_gpus(profile: profiles.Profile, gpus: int, cluster: str) -> None:
    """Sees that GPUs which a profile asks for by sbatch are those of a node, one a process."""
    processes = profile.processes(gpus)
    for key, value in profile.sbatch.items():
        if not profiles.asks_for_gpus(key, value):
            continue
        if gpus != profile.gpus_per_node:
            raise UserError(
                f"--gpus {gpus}: {cluster} asks for GPUs by sbatch, {key}: {value}; give gpu_type there instead"
            )
        count = profiles.gpus_asked(key, value)
        if count not in (None, processes):
            raise UserError(
                f"{cluster}: sbatch asks for {count} GPUs of a node, {key}: {value}, and there would be {processes} "
                "processes on it; set gpus_per_node to the GPUs of a node"
            )


def _refuse_unsafe(path: Path) -> None:
    """SLURM replaces % in the names of logs, a line of a batch script ends with the line, and : parts PYTHONPATH."""
    if not str(path).isprintable() or set(str(path)) & set("%\\:"):
        raise UserError(
            f"the run folder {str(path)!r} cannot be named in a batch script: choose one without control characters, "
            "%, : and \\ with --out"
        )


def _refuse_without_permission(folder: Path) -> None:
    """Raises UserError if the run folder, or the first of its parents that there is, may not be written; makes none."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the run folder {folder} cannot be written: {there} is no folder that you may write to")


def top_of(found: Sequence[Element]) -> Path:
    """Where the code, scripts and logs of one run, or of all runs of a sweep or study, lie."""
    return Path(os.path.commonpath([one.folder.resolve() for one in found]))


def script(found: Sequence[Element], made: slurm.Plan) -> str:
    """The batch script that `submit` would submit."""
    top = top_of(found)
    return slurm.script(replace(made, pythonpath=str(code(found, top).folder)), top / "slurm", len(found))


def submit(found: Sequence[Element], asked: Asked, words: Sequence[str], *, upgrade: bool = False) -> list[str]:
    """Snapshots and submits runs; returns their job numbers. Nothing is changed before all checks have passed.

    With `upgrade` a run that was saved may go on with other versions of its plugins.

    Raises:
        UserError: a run folder is in use, cannot be written, holds another recipe or other plugins; or SLURM refused.
    """
    top, made = top_of(found), plan(found, asked)
    now = code(found, top)
    for one in found:
        folder = Folder(one.folder)
        _refuse_without_permission(one.folder)
        refuse_if_active(one.folder)
        folder.refuse_others()
        refuse(folder, replace(one.recipe, plugins=now.plugins), one.installed)
        saved = checkpoint.steps(folder.checkpoints)
        if saved and not upgrade:
            refuse_upgrade(folder, one.recipe, one.installed)
        State(one.folder).refuse_vanished(max(saved, default=0))
    slurm.executor(made, top / "slurm")  # is there a SLURM?
    return send(made, found, asked, top, words, now)


def code(found: Sequence[Element], top: Path) -> Snapshot:
    """The code of now, which the jobs of these runs would use."""
    return snapshot.of(found[0].installed, found[0].recipe.plugins, top / "code")


def send(
    made: slurm.Plan, found: Sequence[Element], asked: Asked, top: Path, words: Sequence[str], use: Snapshot | Path
) -> list[str]:
    """Submits runs and notes their jobs in their folders; if SLURM refuses, all is as it was.

    The jobs `use` a snapshot, or the folder of an earlier one: then recipes stay as they are.

    Raises:
        UserError: a folder cannot be written, or SLURM refused.
    """
    where = use if isinstance(use, Path) else use.folder
    if isinstance(use, Path) and not use.is_dir():
        raise UserError(f"{use}, the code that this run was submitted with, is gone; --allow-upgrade uses that of now")
    made = replace(made, pythonpath=str(where))
    launch: dict[str, Any] = {
        "asked": asked.__dict__ | {"then": list(asked.then)},
        "top": str(top),
        "code": str(where),
        "words": list(words),
    }
    launch |= {"processes": made.processes, "gpus": made.gpus, "lead": made.profile.signal_lead}
    launch |= {"evaluate": asked.evaluate, "time": time.time(), "logs": str(top / "slurm")}
    files = [folder / name for folder in made.folders for name in ("recipe.yaml", "launch.json", requeue.BARREN)]
    new = use if isinstance(use, Snapshot) and use.write() else None
    try:
        with _as_they_were(files):
            for one in found:
                folder = one.folder.resolve()
                if isinstance(use, Snapshot):
                    claim(Folder(folder), replace(one.recipe, plugins=use.plugins), one.installed, print)
                (folder / requeue.BARREN).unlink(missing_ok=True)
                State(folder).write_launch(launch)  # before the job can start
            jobs = slurm.submit(made, top / "slurm", [Job(str(folder)) for folder in made.folders])
    except BaseException:
        if new is not None:
            new.remove()
        raise
    for folder, job in zip(made.folders, jobs, strict=True):
        State(folder).write_launch(launch | {"job": job})  # whatever becomes of what follows
    for one, folder, job in zip(found, made.folders, jobs, strict=True):
        try:
            more = _followed(made, one, folder, job, asked, top)
        except UserError as error:
            submitted = f"the training is submitted, as job {', '.join(jobs[:3])}{' ...' if len(jobs) > 3 else ''}"
            raise UserError(f"{error}\n{submitted}; what was to follow {job} is not: `sslzoo eval` does it") from error
        State(folder).write_launch(launch | {"job": job} | more)
    return jobs


def _followed(made: slurm.Plan, one: Element, folder: Path, job: str, asked: Asked, top: Path) -> dict[str, Any]:
    """Submits what follows a run that succeeded, its evaluation and then commands; returns their jobs."""
    more: dict[str, Any] = {}
    if asked.evaluate and one.recipe.evaluate is not None:
        limit, probe = made.profile.probing_time, Probing(str(folder), asked.networks)
        (more["probing"],) = _afterwards(made, "probing", job, limit, [probe], top)
    commands = [Command(with_folder(words, folder)) for words in asked.then]
    return more | {"then": _afterwards(made, "then", more.get("probing", job), made.time, commands, top)}


@contextmanager
def _as_they_were(files: Sequence[Path]) -> Iterator[None]:
    """If what follows fails, the files come back."""
    had = {file: file.read_bytes() if file.is_file() else None for file in files}
    try:
        yield
    except BaseException:
        for file, content in had.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)
        raise


def _afterwards(made: slurm.Plan, name: str, job: str, limit: str, functions: Sequence[Any], top: Path) -> list[str]:
    """Submits jobs of one process, with a GPU if the run has some, that wait until another has succeeded."""
    # Where the run fails, what waits for its success goes too.
    profile = made.profile.of_one_process(made.gpus)
    profile = profile.model_copy(update={"sbatch": {**profile.sbatch, "kill-on-invalid-dep": "yes"}})
    one = replace(made, name=f"{made.name}-{name}", nodes=1, after=job, limit=None, folders=(), time=limit)
    one = replace(one, profile=profile, gpus=min(1, made.gpus))
    return [slurm.submit(one, top / "slurm", [function])[0] for function in functions]


def with_folder(words: str, folder: Path) -> tuple[str, ...]:
    """The words of a command that follows a run: its folder after the command's name, or where {} stands.

    Raises:
        UserError: a quotation does not end, or there is no command.
    """
    try:
        name, *rest = shlex.split(words.strip().removeprefix("sslzoo "))
    except ValueError as error:
        raise UserError(
            f"--then: found {words!r}; a command is wanted, such as 'eval --untrained' ({error})"
        ) from error
    if "{}" in rest:
        return (name, *(str(folder) if word == "{}" else word for word in rest))
    return (name, str(folder), *rest)


def refuse_if_active(folder: Path) -> None:
    """Raises UserError if a job of this run folder is pending or runs, or a process holds it; changes nothing."""
    for job, answer in active(folder).items():
        raise UserError(
            f"the run folder {folder} is in use: job {job} is {answer.state}\n"
            f"follow it with `sslzoo status {folder}`, or end it with `sslzoo cancel {folder}`"
        )
    State(folder).refuse_if_held()


def _axis(text: str) -> tuple[str, list[str]]:
    """key=a,b,c or key=[a, b, c], the values as YAML."""
    key, equals, written = text.partition("=")
    if not equals or not key.strip() or not written.strip():
        raise UserError(f"--sweep: found {text!r}; KEY=VALUE,VALUE is wanted, such as optim.lr=1e-3,5e-4")
    try:
        value = yamltext.value(written if written.lstrip().startswith("[") else f"[{written}]")
    except ValueError as error:
        raise UserError(f"--sweep {key}: {error}") from error
    return key.strip(), [yamltext.written(one) for one in value]


def _folder_name(own: Sequence[str]) -> str:
    name = ",".join("".join(c if c.isalnum() or c in "=.-" else "_" for c in one) for one in own)
    return name if len(name) <= 120 else f"{name[:100]}-{zlib.crc32(name.encode()):08x}"
