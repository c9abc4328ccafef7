"""How is a run carried out, wherever it happens? Join, lock, train, probe, draw; and tell those outside."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from sslzoo import files
from sslzoo.errors import RunError, UserError
from sslzoo.evaluate.rehearse import rehearse
from sslzoo.launch import facts
from sslzoo.launch.blame import blame, explain
from sslzoo.launch.grace import Grace, kill_wait
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe.fit import Flow, check
from sslzoo.recipe.recipe import Recipe
from sslzoo.recipe.resuming import refuse_upgrade
from sslzoo.report.display import Display
from sslzoo.run import checkpoint, processes
from sslzoo.run.clock import time_left
from sslzoo.run.folder import Folder
from sslzoo.run.guard import later
from sslzoo.run.metrics import peak_memory
from sslzoo.run.parallel import barrier
from sslzoo.run.processes import LostContact, World
from sslzoo.run.state import InUse, State
from sslzoo.run.stop import Stop, Stopped
from sslzoo.step import Method
from sslzoo.train import Say, Watch, train


def work(
    recipe: Recipe,
    installed: Catalogue,
    out: Path,
    stop: Stop,
    *,
    evaluate: bool,
    promised: Promised | None = None,
    upgrade: bool = False,
) -> None:
    """Trains a recipe in a run folder, then probes its encoder and writes its page.

    `promised` is what a job was submitted with; it may hold many GPUs, so another job probes (`probing`). Of several
    processes, one that fails leaves at once: it neither returns nor waits for the others, and its launcher ends those
    that still wait for it.

    Raises:
        Stopped: it was asked to stop; what was done is saved.
        LostContact: other processes are gone, or did not come, without a word; what was saved is on disk.
        UserError: it cannot start or go on. The reason is in the folder's failure.txt too, unless the command was
            refused before anything was done: then the folder is left as it was.
    """
    Folder(out).refuse_others()
    if not upgrade:
        refuse_upgrade(Folder(out), recipe, installed)
    flow = check(recipe, installed)
    remarks = rehearse(recipe, installed) if evaluate else ()
    state = State(out)
    own = Own(promised is not None or not state.begun)
    attempt = Attempt(recipe, installed, flow, out, stop, state, own)
    world = None
    try:
        count, gpus = (None, False) if promised is None else (promised.processes, bool(promised.gpus))
        world = processes.join(recipe.run.device, count, gpus=gpus)
        if world.first:
            grace = None if promised is None else Grace(promised.lead, kill_wait())
            _first(attempt, world, grace, remarks, evaluate=evaluate and promised is None)
        else:
            barrier()  # until the first process holds the folder
            probe = during(attempt, world, lambda _: None)
            train(recipe, installed, flow, out, world, Watch(begin=own.begin, stop=stop, probe=probe))
        processes.leave()
    except Stopped:
        processes.leave()
        raise
    except BaseException as error:
        found = error if isinstance(error, InUse) else _judged(error, world, state)
        elsewhere = isinstance(found, InUse | LostContact)
        # The signal that asks a job to stop also ends what libraries started, such as compilers, which is no own error.
        elsewhere |= promised is not None and bool(stop.asked) and not isinstance(found, UserError)
        if elsewhere and promised is not None:
            state.hint(str(found))
        elif own.run and (processes.broken(error) or (found is error and not elsewhere)):
            _note(found, recipe, installed, state)
        if world is not None and world.size > 1:
            _leave_at_once(found)
        raise found from (None if found is error else error)


@dataclass(frozen=True)
class Promised:
    """What a submitted job was promised: processes in all, GPUs of each node, and seconds before its time limit."""

    processes: int
    gpus: int
    lead: int


@dataclass(frozen=True)
class Attempt:
    """One start of a run: what is trained and where, who may end it, and whose the folder's state is."""

    recipe: Recipe
    installed: Catalogue
    flow: Flow
    out: Path
    stop: Stop
    state: State
    own: Own


@dataclass
class Own:
    """Whether the run folder's state is this command's to write: once it began, or where there was no run before."""

    run: bool

    def begin(self, _step: int, _steps: int) -> None:
        """From here on, a failure is one of the run."""
        self.run = True


def _first(attempt: Attempt, world: World, grace: Grace | None, remarks: Sequence[str], *, evaluate: bool) -> None:
    """What the first process does beside training: holds the folder, tells how it goes on, probes at the end."""
    recipe, installed, flow, out = attempt.recipe, attempt.installed, attempt.flow, attempt.out
    stop, state = attempt.stop, attempt.state
    again = bool(files.read_text(out / "log.txt")[0])
    with state.locked(most=_alone_at_most(world)), Display(out / "log.txt") as display:
        barrier()
        display.say(f"{recipe.name} in {out}: {world}")
        for remark in remarks:  # before hours of training, not after them
            display.say(f"warning: {remark}")
        known = facts.of_run(flow) | facts.of_recipe(recipe, installed) | facts.of_machine(world)
        # From a signal to its save: the steps that a GPU still owes, those until the votes on it are read, and its own.
        steps = 2 * later(world.device.type) + 1
        teller = Teller(state, display, recipe.run.batch, attempt.own, known, grace, steps, again)
        try:
            watch = replace(teller.watch(stop), probe=during(attempt, world, display.say))
            train(recipe, installed, flow, out, world, watch)
            memory = {"peak_memory": peak_memory(world.device)}  # of the training: probing may take more
            processes.leave()  # what follows is done by this process alone
            if evaluate and recipe.evaluate is not None:
                stop.patient = False  # nothing is lost when probing is cut short
                if stop.asked:
                    raise Stopped(f"stopped by {stop.asked}")
                teller.tell("probing", **memory)
                _probe(recipe, installed, out, world, display)
        except Stopped:
            stop.patient, stop.asked = True, ""  # a second signal must not keep this from being told
            saved = max(checkpoint.steps(Folder(out).checkpoints), default=0)
            if not saved:  # a second Ctrl-C does not wait for a save
                display.say("nothing was saved, so the same command begins again at step 0")
            teller.tell("stopped", step=saved, saved=saved)
            raise
        teller.tell("done", left=0, **memory)


@dataclass
class Teller:
    """Tells how a run goes on: a person by the display, others by the state file."""

    state: State
    display: Display
    batch: int
    own: Own
    facts: Mapping[str, Any] = field(default_factory=dict)
    grace: Grace | None = None
    steps: int = 1  # from a signal to its save
    again: bool = False  # the folder has a log of an earlier start
    pace: float = 0.0  # seconds of a step
    warned: bool = False  # of too little grace
    dumb: bool = False  # the state file cannot be written

    def watch(self, stop: Stop) -> Watch:
        """What the training loop talks to."""
        return Watch(self.display.say, self.begin, self.show, self.saved, stop)

    def tell(self, word: str, **more: Any) -> None:
        """Where the run stands; what cannot be written is not worth a run, and is told once."""
        try:
            self.state.tell(word, **more)
            self.dumb = False
        except RunError as error:
            if not self.dumb:
                self.display.say(f"warning: {error}; `sslzoo status` is behind")
            self.dumb = True

    def begin(self, step: int, steps: int) -> None:
        """The run begins, here or again; raises RunError where it must not."""
        faults, remembered, before = self.state.faults, self.state.saved, self.state.now
        self.state.begin(step, self.facts)
        self.own.begin(step, steps)
        for fault in faults:
            self.display.say(f"warning: {fault}")
        if remembered > step:
            self.display.say(f"warning: this run was saved at step {remembered}; that checkpoint is not there any more")
        elif before.get("step") and not step:
            self.display.say(f"warning: this run was at step {before['step']} and never saved, so it begins again")
        elif self.again and not step and not before:
            why = "its log tells of an earlier start, and nothing else does"
            self.display.say(f"warning: {why}, so it begins at step 0")
        self.warn(before.get("saving") or 0.0)
        self.tell("running", step=step, steps=steps, saved=step)

    def show(self, at: Progress, line: dict[str, float]) -> None:
        """A line of metrics."""
        rate = line["images_per_second"]
        self.pace = self.batch / rate
        left = time_left(at, self.batch, rate)
        self.tell("running", step=at.step + 1, steps=at.steps, loss=line["loss"], rate=rate, left=left)
        self.display.show(at, line, left)

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint is on disk."""
        self.tell("running", saved=step, saving=seconds)
        self.warn(seconds)

    def warn(self, saving: float) -> None:
        """Tells once where a save takes longer than the cluster leaves for it."""
        remark = self.grace.warning(saving + self.steps * self.pace) if self.grace is not None else ""
        if remark and not self.warned:
            self.display.say(f"warning: {remark}")
            self.warned = True


def start(
    folder: Path, words: Sequence[str] = (), *, gpu: str | None = None, **environment: str
) -> subprocess.Popen[bytes]:
    """Trains a run folder in a process of its own, without its evaluation; what it prints goes to output.txt there.

    `words` are a module that does more, and what it is told. `environment` counts where this process's own is silent;
    `gpu`, as CUDA_VISIBLE_DEVICES has it, is the only one that the process sees.
    """
    command = [sys.executable, "-m", *(words or ("sslzoo", "train", str(folder), "--no-evaluate"))]
    with (folder / "output.txt").open("ab") as log:
        given = environment | os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=given)


def probing(recipe: Recipe, installed: Catalogue, out: Path, *, gpus: bool, networks: str | None = None) -> None:
    """Probes the encoder of a finished run and draws its page, in this process alone; its state stays as it is.

    `networks` as in `evaluate.figures.finish`.
    """
    world = processes.join(recipe.run.device, 1, gpus=gpus)
    with Display(out / "log.txt") as display:
        _probe(recipe, installed, out, world, display, networks)


def during(attempt: Attempt, world: World, say: Say) -> Callable[[Method], dict[str, float]] | None:
    """What probes a run while it goes on, where its recipe asks for that; on all ranks where they share the encoder."""
    recipe = attempt.recipe
    if recipe.evaluate is None or recipe.evaluate.every is None or not (world.first or recipe.run.shard > 1):
        return None
    from sslzoo.evaluate.during import During

    together = recipe.run.shard > 1
    most = math.inf if together else _alone_at_most(world)
    given = recipe, attempt.installed, world.device, attempt.out
    return During(*given, stop=attempt.stop, most=most, together=together, say=say)


def _alone_at_most(world: World) -> float:
    """Seconds that one process may keep the others waiting: half of what they wait before they take it for lost."""
    return processes.patience().total_seconds() / 2 if world.size > 1 else math.inf


def _probe(
    recipe: Recipe, installed: Catalogue, out: Path, world: World, display: Display, networks: str | None = None
) -> None:
    from sslzoo.evaluate.bench import restored
    from sslzoo.evaluate.figures import finish, table
    from sslzoo.report.page import write

    method, step = restored(recipe, installed, out, say=display.say)  # as saved: whole, wherever its shards were
    method.to(world.device)
    figures = finish(recipe, installed, method, step, out, world.device, display.say, networks)
    display.print(table(figures))
    display.say(f"page: {write(recipe, installed, method, step, out)}")


def _judged(error: BaseException, world: World | None, state: State) -> BaseException:
    """The error itself; or, where it only says that a GPU or other processes are gone, what became of them."""
    if processes.broken(error):
        return LostContact(f"a GPU of {socket.gethostname()} failed or is in use: {error}")
    if world is None or not processes.lost_contact(error, world, lambda: bool(state.failure)):
        return error
    first = _told_within(state, 15.0)
    if first:
        return RunError(f"another process failed first: {first}")
    return LostContact(f"other processes fell silent and none told why: {error}")


def _note(error: BaseException, recipe: Recipe, installed: Catalogue, state: State) -> None:
    """Writes an error into the run folder, and whose it is."""
    whose = blame(error, recipe, installed)
    if state.folder.is_dir():
        state.fail(str(error) if isinstance(error, UserError) else explain(error, whose))
    if whose:
        error.add_note(whose)


def _leave_at_once(error: BaseException) -> NoReturn:
    """Says why and ends this process, without the clean-up of collectives, which waits for others."""
    with suppress(OSError, ValueError):
        if isinstance(error, UserError):
            print(error, file=sys.stderr)  # noqa: T201 - as the command line does
        else:
            traceback.print_exception(error)
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(error.exit_code if isinstance(error, UserError) else 1)


def _told_within(state: State, seconds: float) -> str:
    """What another process tells of its own error in time: its last line."""
    until = time.monotonic() + seconds
    while not state.failure and time.monotonic() < until:
        time.sleep(0.2)
    return state.reason
