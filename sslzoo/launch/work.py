"""How is a run carried out, wherever it happens? Join, lock, train, probe, draw; and tell those outside."""

from __future__ import annotations

import time
from pathlib import Path

import torch.distributed as dist

from sslzoo.errors import RunError, UserError
from sslzoo.launch.blame import blame, explain
from sslzoo.launch.state import InUse, State
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe.build import Flow, build, check
from sslzoo.recipe.recipe import Recipe, resolve
from sslzoo.report.display import Display
from sslzoo.run import checkpoint, parallel
from sslzoo.run.folder import Folder
from sslzoo.run.parallel import World
from sslzoo.run.stop import Stop, Stopped
from sslzoo.train import Watch, train


class LostContact(RunError):  # noqa: N818 - what happened, as Stopped
    """Other processes are gone and left no error: a node was lost, or something killed them."""


def work(
    recipe: Recipe,
    installed: Catalogue,
    out: Path,
    stop: Stop,
    *,
    evaluate: bool,
    processes: int | None = None,
    upgrade: bool = False,
) -> None:
    """Trains a recipe in a run folder, then probes its encoder and draws the page of plots.

    Raises:
        Stopped: it was asked to stop; what was done is saved.
        LostContact: other processes are gone without a word; what was saved is on disk.
        UserError: it cannot start or go on; the reason is in the folder's failure.txt too.
    """
    if not upgrade:
        refuse_upgrade(recipe, installed, out)
    flow = check(recipe, installed)
    state = State(out)
    try:
        world = parallel.join(None if recipe.run.device == "auto" else recipe.run.device, processes)
        if world.first:
            with state.locked():
                _first(recipe, installed, flow, out, world, stop, state, evaluate)
        else:
            train(recipe, installed, flow, out, world, Watch(stop=stop))
    except (Stopped, InUse):  # no failure of the run
        raise
    except BaseException as error:
        if _is_silence(error):
            first = _told_within(state, 15.0)
            if not first:
                raise LostContact(f"other processes fell silent and none told why: {error}") from error
            raise RunError(f"another process failed first: {first}") from None
        told = blame(error, recipe, installed)
        if out.is_dir():
            state.fail(str(error) if isinstance(error, UserError) else explain(error, told))
        if told:
            error.add_note(told)
        raise
    finally:
        parallel.leave()


def refuse_upgrade(recipe: Recipe, installed: Catalogue, out: Path) -> None:
    """Raises UserError if a plugin is not what it was when this run began."""
    changed = Folder(out).upgraded(resolve(recipe, installed))
    if changed:
        text = f"{out} was begun with other plugins:\n" + "".join(f"    {line}\n" for line in changed)
        raise UserError(text + "go on with these with --allow-upgrade, or choose another folder with --out")


def _first(
    recipe: Recipe,
    installed: Catalogue,
    flow: Flow,
    out: Path,
    world: World,
    stop: Stop,
    state: State,
    evaluate: bool,
) -> None:
    with Display(out / "log.txt") as display:
        display.say(f"{recipe.name} in {out}: {world}")

        def show(at: Progress, line: dict[str, float]) -> None:
            rate = line["images_per_second"]
            left = (at.steps - at.step - 1) * recipe.run.batch / rate
            state.tell("running", step=at.step + 1, steps=at.steps, loss=line["loss"], rate=rate, left=left)
            display.show(at, line)

        def begin(step: int, steps: int) -> None:
            state.begin(step, steps)
            state.tell("running", step=step, steps=steps)

        try:
            train(recipe, installed, flow, out, world, Watch(display.say, begin, show, stop))
        except Stopped:
            state.tell("stopped", step=max(checkpoint.steps(Folder(out).checkpoints)))
            raise
        if evaluate and recipe.evaluate is not None:
            stop.patient = False  # nothing is lost when probing is cut short
            if stop.asked:
                raise Stopped(f"stopped by {stop.asked}")
            state.tell("probing")
            _probe(recipe, installed, out, world, display)
    state.tell("done", left=0)


def _probe(recipe: Recipe, installed: Catalogue, out: Path, world: World, display: Display) -> None:
    from sslzoo.evaluate.evaluate import finish, restored, table
    from sslzoo.report.page import write

    method = restored(recipe, installed, out)[0].to(world.device)  # as saved: whole, wherever its shards were
    figures = finish(recipe, installed, method, out, world.device, display.say)
    display.print(table(figures))
    display.say(f"plots: {write(recipe, installed, method, build(recipe, installed)[1], out, figures)}")


def _is_silence(error: BaseException) -> bool:
    """Whether an error is that of a collective whose other end is gone."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process", "NCCL")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    )


def _told_within(state: State, seconds: float) -> str:
    """What another process tells of its own error in time: its last line."""
    until = time.monotonic() + seconds
    while not state.failure and time.monotonic() < until:
        time.sleep(0.2)
    return state.reason
