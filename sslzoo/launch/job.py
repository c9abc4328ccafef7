"""What runs inside a SLURM job? The run whose folder it is given; everything else it needs lies there."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslzoo.errors import RunError, UserError
from sslzoo.run.state import State
from sslzoo.run.stop import Stop, Stopped


@dataclass(frozen=True)
class Job:
    """A run by its folder: all that is pickled."""

    folder: str

    def __call__(self) -> None:
        """Carries the run out, as one process of several. The batch script decides whether the job is queued again."""
        stop = Stop()
        stop.listen()  # in place of submitit's own handlers, which only act on one signal
        try:
            _work(Path(self.folder), stop)
        except Stopped as error:
            _say(error)
            # All have saved. One tells the batch script, and srun ends the others if they are still here.
            sys.exit(error.exit_code if os.environ.get("SLURM_PROCID", "0") == "0" else 0)
        except UserError as error:
            _say(error)
            _note_refusal(Path(self.folder), error)
            sys.exit(error.exit_code)

    def checkpoint(self) -> Any:
        """What submitit asks for before it requeues: the same job. All that was done is in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Probing:
    """The evaluation of a finished run, by its folder, in a job of its own: whatever becomes of it, nothing trains."""

    folder: str
    networks: str | None = None  # teacher, student or all; the recipe's choice if left out

    def __call__(self) -> None:
        """Probes the encoder and draws the page; from the start, if SLURM queues it again after a preemption."""
        from sslzoo.launch.work import probing
        from sslzoo.recipe.recipe import load

        folder = Path(self.folder)
        try:
            gpus = bool(State(folder).launch.get("gpus"))
            probing(*load(self.folder), folder, gpus=gpus, networks=self.networks)
        except UserError as error:
            _say(error)
            sys.exit(error.exit_code)


@dataclass(frozen=True)
class Command:
    """A command line by its words, such as an evaluation after a training."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Runs it."""
        subprocess.run([sys.executable, "-m", "sslzoo", *self.words], check=True)


def _work(folder: Path, stop: Stop) -> None:
    from sslzoo.launch.work import Promised, work
    from sslzoo.recipe.recipe import load

    launch = State(folder).launch
    recipe, installed = load(str(folder))
    promised = Promised(launch["processes"], launch["gpus"], launch["lead"]) if launch else None
    # The code is the snapshot of the submission, whatever the installed packages say of their versions.
    work(recipe, installed, folder, stop, evaluate=launch.get("evaluate", True), promised=promised, upgrade=True)


def _note_refusal(folder: Path, error: UserError) -> None:
    """An error before the run began is told in its folder, too, so that nobody queues the job again for it."""
    from sslzoo.run.processes import LostContact
    from sslzoo.run.state import InUse

    state = State(folder)
    if not isinstance(error, LostContact | InUse) and not state.failure:
        with suppress(RunError):
            state.fail(str(error))


def _say(error: UserError | Stopped) -> None:
    with suppress(OSError, ValueError):
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - the job's log
