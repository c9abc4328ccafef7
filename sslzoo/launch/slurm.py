"""How does one speak with SLURM? Submitting through submitit, asking what became of jobs, ending them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslzoo.errors import UserError
from sslzoo.launch import requeue
from sslzoo.launch.profile import Profile, asks_for_gpus, minutes

LINGER = 60  # seconds that processes may go on when the first of them has ended
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE")
ENDED += ("PREEMPTED", "REVOKED", "LAUNCH_FAILED")  # of a job that was queued again, squeue tells first


@dataclass(frozen=True)
class Plan:
    """What a job asks of the cluster."""

    name: str
    profile: Profile
    nodes: int
    gpus: int
    time: str
    comment: str
    pythonpath: str = ""
    folders: tuple[Path, ...] = ()  # the run of each element; none for a job that is no run
    limit: int | None = None  # most elements of an array at a time
    after: str | None = None  # a job that must have succeeded before

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.profile.processes(self.gpus)

    def parameters(self) -> dict[str, Any]:
        """The keys that submitit takes."""
        p = self.profile
        # A process that ends well before its time leaves the others waiting in a collective.
        srun = [f"--cpus-per-task={p.cpus_per_process}", "--kill-on-bad-exit=1", f"--wait={LINGER}"]
        # Where sbatch passes no environment on (SBATCH_EXPORT=NONE), srun would not pass on what the script exports.
        srun.append("--export=ALL")
        if p.container is not None:
            srun.append(f"--container-image={p.container.image}")
            srun += [f"--container-mounts={','.join(p.container.mounts)}"] if p.container.mounts else []
        # The snapshot comes first, even where the job was submitted from a folder that holds the source.
        setup = [*p.setup, *(f"export {key}={_quoted(value)}" for key, value in p.environment.items())]
        if self.pythonpath:
            setup += [f"export PYTHONPATH={shlex.quote(self.pythonpath)}", "export PYTHONSAFEPATH=1"]
        if self.folders:
            setup += requeue.before(self.folders)
        given = {"job_name": self.name, "time": minutes(self.time), "nodes": self.nodes}
        given |= {"ntasks_per_node": p.processes(self.gpus), "cpus_per_task": p.cpus_per_process}
        given |= {"signal_delay_s": p.signal_lead, "stderr_to_stdout": True, "srun_args": srun, "comment": self.comment}
        # Where neither is said, the cluster decides, and most requeue.
        own = {"requeue": True} | p.own if p.requeues else p.own | {"requeue": False, "no_requeue": True}
        given |= {"additional_parameters": {key: value for key, value in own.items() if value is not False}}
        given |= {"setup": setup, "teardown": requeue.after() if self.folders and p.requeues else None}
        given |= {"wckey": None}  # submitit's is its own name, which clusters that check these refuse
        gpus = f"{p.gpu_type}:{self.gpus}" if p.gpu_type else self.gpus
        asked = not self.gpus or any(asks_for_gpus(key, value) for key, value in p.sbatch.items())
        optional = {"gpus_per_node": None if asked else gpus}
        optional |= {"partition": p.partition, "account": p.account, "qos": p.qos}
        optional |= {"constraint": p.constraint, "mem": p.memory, "array_parallelism": self.limit}
        optional |= {"dependency": f"afterok:{self.after}" if self.after else None}
        return given | {key: value for key, value in optional.items() if value is not None}


def executor(plan: Plan, folder: Path) -> Any:
    """A submitit executor for a plan, whose scripts and logs lie in `folder`.

    Raises:
        UserError: there is no SLURM here.
    """
    import submitit

    if missing := [tool for tool in ("sbatch", "srun") if shutil.which(tool) is None]:
        raise UserError(
            f"there is no SLURM on this machine: {' and '.join(missing)} not found\n"
            "submit from a login node of the cluster, or run here with `sslzoo train`"
        )
    python = None if plan.profile.container is None else shlex.quote(plan.profile.container.python)
    made = submitit.SlurmExecutor(folder=folder, python=python)
    made.update_parameters(**plan.parameters())
    return made


def script(plan: Plan, folder: Path, runs: int = 1) -> str:
    """The batch script of a plan: of a job, or of an array of `runs`."""
    made = executor(plan, folder)
    made.parameters |= {"map_count": runs} if runs > 1 else {}
    return made._make_submission_file_text(made._submitit_command_str, "")


def submit(plan: Plan, folder: Path, functions: Sequence[Any]) -> list[str]:
    """Submits one job, or an array of them; returns their numbers.

    Raises:
        UserError: SLURM refused; says its reason.
    """
    made = executor(plan, folder)
    folder.mkdir(parents=True, exist_ok=True)
    left_open = [key for key in _DEFAULTS if getattr(plan.profile, key) is None and key not in plan.profile.sbatch]
    with _without_outer_job({f"SBATCH_{key.upper()}" for key in left_open}):
        try:
            if len(functions) == 1:
                return [made.submit(functions[0]).job_id]
            with made.batch():
                jobs = [made.submit(function) for function in functions]
        except Exception as error:  # submitit wraps sbatch's words in several kinds of error
            raise UserError(f"SLURM refused the job: {_said(error)}") from error
        return [job.job_id for job in jobs]


def _said(error: BaseException) -> str:
    words = str(error)
    found = re.findall(r"sbatch: (?:error: )?(.*)", words)
    return "; ".join(found) or words


_OUTER = ("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", "TORCHELASTIC_")
_DEFAULTS = ("account", "partition", "qos", "constraint")  # sbatch reads a person's own from SBATCH_ACCOUNT and so on
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


@contextmanager
def _without_outer_job(kept: Collection[str]) -> Iterator[None]:
    """A job inherits the submitter's shell, but neither the job nor the process group that it may be part of.

    Nor what would count more than the script: of a person's defaults for sbatch, those are `kept` that it leaves open.
    """
    outer = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_OUTER) and name != "SLURM_CONF" and name not in kept) or name in _RENDEZVOUS
    }
    for name in outer:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(outer)


def _quoted(value: str) -> str:
    """A value for the shell: variables of the job's own environment may stand in it, all else is as written."""
    pieces = re.split(r"(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})", str(value))
    return "".join(f'"{x}"' if at % 2 else shlex.quote(x) for at, x in enumerate(pieces) if x) or "''"


@dataclass(frozen=True)
class Answer:
    """What SLURM says of a job."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state.startswith(ENDED)


def ask(jobs: Sequence[str]) -> dict[str, Answer]:
    """What became of jobs: from squeue, then sacct where there is accounting, else scontrol; unknown ones left out."""
    wanted = [job for job in dict.fromkeys(jobs) if job]
    if not wanted or shutil.which("squeue") is None:
        return {}
    found = _squeue(wanted)
    for source in (_sacct, _scontrol):
        missing = [job for job in wanted if job not in found]
        found |= source(missing) if missing else {}
    return found


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.splitlines()


def _squeue(jobs: Sequence[str]) -> dict[str, Answer]:
    bases = ",".join(dict.fromkeys(job.split("_")[0] for job in jobs))
    form = "JobArrayID:|,JobID:|,State:|,Reason:|,NodeList:|"
    rows = [line.split("|") for line in _lines("squeue", "--noheader", "--array", "--jobs", bases, "--Format", form)]
    answers = {}
    for row in rows:
        array, job, state, reason, nodes = (cell.strip() for cell in row[:5])
        answer = Answer(state, _told(reason), nodes)
        answers |= {name: answer for name in (array, job) if name in jobs}
    return answers


def _sacct(jobs: Sequence[str]) -> dict[str, Answer]:
    form = "JobID,State,Reason,NodeList"
    rows = _lines("sacct", "-X", "-n", "-P", "-D", "-j", ",".join(jobs), "-o", form)
    answers = {}
    for row in rows:  # one a start; the last is the one that counts
        job, state, reason, nodes = row.split("|")[:4]
        answers[job] = Answer(state.split()[0], _told(reason), nodes)
    return answers


def _scontrol(jobs: Sequence[str]) -> dict[str, Answer]:
    answers = {}
    for job in jobs:
        for line in _lines("scontrol", "show", "job", "-o", job):
            fields = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
            reason = _told(fields.get("Reason", ""))
            answers[job] = Answer(fields.get("JobState", "UNKNOWN"), reason, fields.get("NodeList", ""))
    return answers


def _told(reason: str) -> str:
    """A reason as SLURM writes it, which says None where there is none."""
    return "" if reason == "None" else reason


def cancel(jobs: Sequence[str]) -> None:
    """Ends jobs.

    Raises:
        UserError: SLURM refused.
    """
    done = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
    if done.returncode or "error" in done.stderr:
        raise UserError(f"SLURM refused: {done.stderr.strip()}")
