"""What runs inside a SLURM job? The run whose folder it is given; everything else it needs lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslzoo.errors import UserError
from sslzoo.launch import slurm
from sslzoo.launch.state import State
from sslzoo.run.stop import Stop, Stopped


@dataclass(frozen=True)
class Job:
    """A run by its folder: all that is pickled."""

    folder: str

    def __call__(self) -> None:
        """Carries the run out, as one process of several; requeues the job when it is stopped."""
        from sslzoo.launch.work import LostContact

        stop = Stop()
        stop.listen()  # in place of submitit's own handlers, which only act on one signal
        try:
            _work(Path(self.folder), stop)
        except Stopped as error:
            print(error, flush=True)  # noqa: T201 - the job's log
            if os.environ.get("SLURM_PROCID", "0") == "0":  # srun must not see another leave with an error before
                _requeue(Path(self.folder))
        except LostContact as error:
            print(error, flush=True)  # noqa: T201
            _requeue(Path(self.folder))  # whoever is left; the first of the processes may be among the lost
        except UserError as error:
            print(error, file=sys.stderr, flush=True)  # noqa: T201
            sys.exit(error.exit_code)

    def checkpoint(self) -> Any:
        """What submitit asks for before it requeues: the same job. All that was done is in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Command:
    """A command line by its words, such as an evaluation after a training."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Runs it."""
        subprocess.run([sys.executable, "-m", "sslzoo", *self.words], check=True)


def _work(folder: Path, stop: Stop) -> None:
    from sslzoo.launch.work import work
    from sslzoo.recipe.recipe import load

    told = State(folder).launch
    recipe, installed = load(str(folder))
    # The code is the snapshot of the submission, whatever the installed packages say of their versions.
    work(recipe, installed, folder, stop, evaluate=told["evaluate"], processes=told["processes"], upgrade=True)


def _requeue(folder: Path) -> None:
    """Asks SLURM to run this job again, unless SLURM has decided otherwise."""
    job, state = os.environ["SLURM_JOB_ID"], State(folder)
    if not state.claim(f"requeued-{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"):
        return  # another process has; a second request might hit the job when it already runs again
    now = slurm.ask([job]).get(job)
    if now is not None and now.state != "RUNNING":
        # Cancelled, or requeued by hand: SLURM has decided, and a request now would undo a cancellation.
        print(f"job {job} is {now.state}: SLURM has decided what becomes of it", flush=True)  # noqa: T201
        return
    state.tell("requeued")
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode and "pending" not in done.stderr:
        state.fail(f"saved, but SLURM does not requeue: {done.stderr.strip()}; `sslzoo resume {folder}` goes on")
        sys.exit(143)
    print(f"requeue of job {job}: {done.stderr.strip() or 'asked for'}", flush=True)  # noqa: T201
