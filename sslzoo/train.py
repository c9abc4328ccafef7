"""The run, top to bottom: build, restore, loop, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.contracts import Batch, Grid
from sslzoo.errors import Problem, RunError
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe.build import build, build_method, build_optimizer, make
from sslzoo.recipe.fit import Flow
from sslzoo.recipe.precision import settled
from sslzoo.recipe.recipe import Recipe, resolve, turns
from sslzoo.recipe.resuming import claim, refuse, refuse_foreign
from sslzoo.recipe.sections import OptimKeys, Run
from sslzoo.recipe.starting import pinned
from sslzoo.recipe.starting import start as start_from
from sslzoo.rng import derive_seed, seed_noise
from sslzoo.run import checkpoint, data, loader, optim
from sslzoo.run.clock import Clock
from sslzoo.run.compiling import compile_blocks, refuse_uncompilable
from sslzoo.run.folder import Folder
from sslzoo.run.guard import Guard, Unreadable
from sslzoo.run.identity import drawn_together, identity
from sslzoo.run.metrics import collect, mask_shares, of_parts, peak_flops
from sslzoo.run.monitor import monitor_pixels, rank_of
from sslzoo.run.parallel import all_reduce_rate, barrier, data_parallel, no_sync
from sslzoo.run.processes import World, agree
from sslzoo.run.stop import Stop, Stopped
from sslzoo.step import Method

Say = Callable[[str], None]
Stage = Callable[[str], AbstractContextManager[Any]]


def _silent(*_words: Any) -> None:
    """Says nothing."""


def _untimed(_name: str) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Watch:
    """How a run is followed and stopped from outside."""

    say: Say = _silent  # a line for a person
    begin: Callable[[int, int], None] = _silent  # the step it starts from, and its last
    show: Callable[[Progress, dict[str, float]], None] = _silent  # a line of metrics
    saved: Callable[[int, float], None] = _silent  # steps done in a checkpoint, and the seconds it took
    stop: Stop = field(default_factory=Stop)
    probe: Callable[[Method], dict[str, float]] | None = None  # figures for a line of metrics, as evaluate.every says


def train(
    recipe: Recipe,
    catalogue: Catalogue,
    flow: Flow,
    out: Path,
    world: World,
    watch: Watch | None = None,
) -> Method:
    """Trains a recipe in a run folder, from its newest checkpoint if it has one; returns the trained method.

    `watch` is told what happens, by rank 0 alone; only `begin` is called on every rank. When any rank is asked to stop,
    all agree on a step, save and leave.

    Raises:
        Stopped: it was asked to stop; the checkpoint of its last step is on disk.
        RunError: the folder, its checkpoints or its data cannot be used, or three steps in a row were not finite.
    """
    folder, watch = Folder(out), watch or Watch()
    if world.first:
        refuse(folder, recipe, catalogue)
    else:
        shared = watch.probe if recipe.run.shard > 1 else None  # an encoder in pieces is asked by all who hold them
        watch = Watch(begin=watch.begin, stop=watch.stop, probe=shared)
    recipe = pinned(settled(recipe, world, out, watch.say), out)
    run = recipe.run
    method, sources, found = opened(recipe, catalogue, folder, world)
    # Each node may have a copy of its own; one that is not whole gives other images, or a hang.
    agree(", ".join(f"{key} {value}" for key, value in found.items()), world, "see the same training data")
    method.to(world.device).train()
    model = prepare(method, run, world)
    optimizer, moves = build_optimizer(recipe, catalogue, method), recipe.optim_keys

    shares = data.split(run.batch, world.size, run.micro)
    order = data.Order(len(sources.data), run.batch, run.seed)
    steps = length(recipe, catalogue, order, watch.say)
    start = resume(folder, recipe, catalogue, method, optimizer, world, watch.say)
    if world.first:
        checkpoint.refuse_folders(folder.checkpoints, start)
    watch.begin(start, steps)
    ready(folder, recipe, catalogue, found, start, world, watch.say)
    for remark in flow.remarks:
        watch.say(f"warning: {remark}")
    watch.say(
        f"steps {start} to {steps}, {order.epoch_steps} an epoch; batch {run.batch} = {world.size} process"
        f"{'es' if world.size > 1 else ''} x {shares.accumulate} x {shares.micro}, on {world.device}, {run.precision}"
    )
    if start >= steps:
        return method

    grids = sources.grids(method.student.encoder)
    micros = data.Micros(sources, grids, order, shares, world.rank, steps)
    ahead = loader.ahead(micros, run.workers, world.local_size)
    watch.say("; ".join(loader.remarks(sources.data, found, ahead)))
    batches = loader.load(micros, start, steps, ahead, pin=world.device.type == "cuda")
    monitored = monitored_images(recipe, catalogue, sources, world)
    save_every = max(1, run.save_every.steps(order.epoch_steps))
    milestone = max(1, run.milestones.steps(order.epoch_steps)) if run.milestones else None
    guard, unreadable = Guard(folder, world, watch.stop), Unreadable(folder, run.unreadable, watch.say)
    learner = Learner(run, moves, method, model, optimizer, guard, world)
    peak = peak_flops(world.device, run.precision)
    clock = Clock(flow.flops, world, run.batch, peak, *folder.metrics.seconds())
    clock.sending = sending(method, run, world, watch.say)
    journal = Journal(
        learner,
        clock,
        grids,
        start,
        watch,
        monitored,
        monitor_every=max(1, run.monitor_every.steps(order.epoch_steps)),
        probe_every=probing(recipe, order),
    )
    saver = checkpoint.Saver(folder.checkpoints, run.keep, milestone, watch.saved, write=world.first)
    whole = resolve(recipe, catalogue)
    if recipe.start is not None and not start:  # from here on the run does without the file
        saver.save(0, method, optimizer, {"recipe": whole} if world.first else {})

    for step in range(start, steps):
        saver.poll()
        at = Progress(step, steps, order.epoch_steps)
        log_due = due(at, run.log_every)
        numbers = optim.set_schedules(optimizer, moves, at)
        fresh = [clock.waiting(batches) for _ in range(shares.accumulate)]
        metrics = learner.step(fresh, at, log_due)

        unreadable.note(fresh, (step + 1 - start) * shares.micro * shares.accumulate)
        if log_due:
            line = journal.line(at, metrics, numbers, fresh)
            if world.first:
                folder.metrics.write(line)
                catalogue.manager.hook.sslzoo_log(metrics=line, at=at, folder=folder.path)
                watch.show(at, line)
        if guard.stopping or due(at, save_every) or (milestone and due(at, milestone)):
            guard.settle()
            about = {"recipe": whole, "metrics": folder.metrics.digest_of_all()} if world.first else {}
            saver.save(step + 1, method, optimizer, about)
        if guard.stopping and not at.last:
            saver.join()
            barrier()  # nobody leaves before the checkpoint is on disk
            raise Stopped(f"{guard.stopping} after step {step + 1} of {steps}: saved; the same command goes on")
    saver.join()
    barrier()  # a launcher may end those that are left when the first leaves
    return method


def begin(recipe: Recipe, catalogue: Catalogue, out: Path, say: Say) -> None:
    """Begins a run that takes no step: a checkpoint of step 0 holds what the recipe starts from (its section `start`).

    It can be probed, and trained as any other. The training data are not opened.

    Raises:
        UserError: the folder holds a run already; or what the recipe starts from cannot be used.
    """
    folder = Folder(out)
    folder.refuse_others()
    if folder.recipe.exists() or checkpoint.steps(folder.checkpoints):
        raise RunError(f"{out} holds a run already; choose another folder with --out")
    recipe = pinned(recipe, out)  # in which precision it computes is settled where it does
    method = build_method(recipe, catalogue)
    start_from(recipe, method, say)
    optimizer = build_optimizer(recipe, catalogue, method)
    claim(folder, recipe, catalogue, say)  # a kill from here on leaves a run that `train` begins in the same way
    checkpoint.save(folder.checkpoints, 0, method, optimizer, {"recipe": resolve(recipe, catalogue)})


@dataclass(frozen=True)
class Learner:
    """Takes the steps of a run: micro-batches in, weights moved. Nothing is read, logged or saved here."""

    run: Run
    moves: OptimKeys
    method: Method
    model: nn.Module  # the method, distributed over the ranks
    optimizer: torch.optim.Optimizer
    guard: Guard
    world: World

    def cast(self) -> torch.autocast:
        """The precision that the recipe asks for."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.run.precision == "bf16")

    def step(self, fresh: list[Batch], at: Progress, log: bool = False, stage: Stage = _untimed) -> dict[str, Tensor]:
        """One step on micro-batches of the host; returns loss and norm, with `log` all metrics, on the device.

        `stage` is entered for what happens in turn: data, forward, backward, optimizer, EMA (`sslzoo bench`).
        """
        buffers = optim.keep(self.method.buffers())
        loss, metrics = torch.zeros((), device=self.world.device), {}
        with stage("data"):
            batches = data.weigh(fresh, self.world)
        for micro, batch in enumerate(batches):
            with stage("data"):
                batch = batch.normalized()
            number = micro * self.world.size + self.world.rank  # of the step's, whichever rank has it (`Split.slots`)
            seed_noise(derive_seed(self.run.seed, "noise", at.step, number), self.world.device)
            with no_sync(self.model, micro + 1 == len(fresh)):
                with stage("forward"), self.cast():
                    value, figures = self.model(batch, at, log)
                with stage("backward"):
                    (value / len(fresh)).backward()
            loss += value.detach() / len(fresh)
            if log:
                metrics = {name: x / len(fresh) + metrics.get(name, 0.0) for name, x in figures.items()}
        with stage("optimizer"):
            optim.drop_frozen(self.optimizer)
            norm = optim.clip(self.optimizer, self.moves.clip, self.moves.clip_each)
            # From here on, a step that is not finite leaves all as it was before it.
            finite = self.guard.check(at, loss, norm, fresh)
            optim.step(self.optimizer, finite)
            optim.undo(buffers, ~finite)
        with stage("EMA"):
            optim.follow(self.method, at, finite)
        return metrics | {"loss": loss, "grad_norm": norm}


@dataclass(frozen=True)
class Journal:
    """Makes the lines of metrics: of a step, of the time since the line before, and now and then of the encoder."""

    learner: Learner
    clock: Clock
    grids: Mapping[str, Grid]
    start: int  # steps done before this process
    watch: Watch
    monitored: Tensor | None  # images whose effective rank is told
    monitor_every: int  # steps
    probe_every: int  # steps between probes; 0: there are none

    def line(
        self, at: Progress, metrics: Mapping[str, Tensor], numbers: dict[str, float], fresh: list[Batch]
    ) -> dict[str, float]:
        """The line of a step: its metrics on the device, numbers of the host, and micro-batches; all ranks ask."""
        method, every = self.learner.method, self.learner.run.log_every
        known = collect({**metrics, **of_parts(method, at)}, self.learner.world.device)
        line = {"step": at.step + 1, "epoch": (at.step + 1) / at.epoch_steps} | known | numbers
        line |= mask_shares(fresh, self.grids) | self.clock.read(at.step + 1 - self.start)
        if self.monitored is not None and due(at, self.monitor_every, every):
            line["rankme"] = rank_of(method, self.monitored, self.learner.cast())
        if remark := self.clock.of_sending(line["images_per_second"]):
            self.watch.say(remark)
        if self.watch.probe is not None and self.probe_every and due(at, self.probe_every, every):
            line |= self.watch.probe(method)
        return line


def due(at: Progress, every: int, within: int = 1) -> bool:
    """Whether a step is the last, or is among the `within` that are counted from a multiple of `every` on."""
    return at.last or (at.step + 1) % every < within


def length(recipe: Recipe, catalogue: Catalogue, order: data.Order, say: Say) -> int:
    """Steps of the run. Says what of schedules it does not reach, as a run made short on purpose does not.

    Raises:
        RecipeError: the epochs give no step.
    """
    steps = recipe.run.length(order.epoch_steps)
    if not steps:
        text = f"found {recipe.run.epochs:g}; epochs of {order.epoch_steps} steps are wanted, so that there is a step"
        raise recipe.text.error([Problem("run.epochs", text)])
    for place, what, step in turns(recipe, catalogue, order.epoch_steps):
        if step > steps:
            say(f"warning: {place}: the run of {steps} steps ends before {what}, at step {step}")
    return steps


def opened(
    recipe: Recipe, catalogue: Catalogue, folder: Folder, world: World
) -> tuple[Method, data.Sources, dict[str, Any]]:
    """Parts with their starting weights; the data, those that this run began with if it did; and their identity."""
    method, sources = build(recipe, catalogue)
    shares = data.split(recipe.run.batch, world.size, recipe.run.micro)
    found = identity(sources.data) | drawn_together(sources, shares)
    if world.first:
        folder.recognize(found)
    return method, sources, found


def resume(
    folder: Folder,
    recipe: Recipe,
    catalogue: Catalogue,
    method: Method,
    optimizer: torch.optim.Optimizer,
    world: World,
    say: Say,
) -> int:
    """Restores the newest checkpoint, else what the recipe starts from; returns the steps done.

    Says if metrics are not those that the checkpoint remembers.

    Raises:
        RunError: it is damaged, as are all others; or of another recipe.
        UserError: the file that the recipe starts from cannot be used.
    """
    saved = checkpoint.agreed(folder.checkpoints, lambda text: say(f"warning: {text}"), world)
    fresh = "none" if recipe.start is None else f"a file of sha256 {recipe.start.sha256}"
    found = fresh if saved is None else f"step {saved.step}, checksum {saved.checksum:08x}"
    agree(found, world, "start from the same checkpoint")
    if saved is None:
        start_from(recipe, method, say)
        return 0
    if "recipe" in saved.about:
        refuse_foreign(saved.path, saved.about["recipe"], recipe, catalogue)
    checkpoint.restore(saved, method, optimizer)
    say(f"resumed from {saved.path.name}")
    had, have = saved.about.get("metrics"), folder.metrics.digest(saved.step)
    if had not in (None, have):
        say(f"warning: {folder.metrics.path} is not what it was at step {saved.step}: {had} then, {have} now")
    return saved.step


def ready(
    folder: Folder,
    recipe: Recipe,
    catalogue: Catalogue,
    found: Mapping[str, Any],
    start: int,
    world: World,
    say: Say,
) -> None:
    """Writes recipe and data, cuts metrics back to `start` steps: nothing is changed before all is known to fit."""
    if world.first:
        claim(folder, recipe, catalogue, say)
        checkpoint.remove_torn(folder.checkpoints)
        folder.note_data(found, start, say)
        folder.metrics.rewind(start)


def sending(method: Method, run: Run, world: World, say: Say) -> float:
    """Seconds that an all-reduce of all gradients takes, as they travel, measured now, once.

    Nothing for one process, nor with `run.shard`: what is sent then is no such all-reduce.
    """
    if world.size == 1 or run.shard > 1:
        return 0.0
    dtype = torch.bfloat16 if run.reduce == "bf16" else torch.float32
    size = sum(parameter.numel() * dtype.itemsize for _, parameter in optim.trainable(method))
    rate = all_reduce_rate(world, size, dtype)
    reached = f"an all-reduce among {world.size} processes reaches {rate / 1e9:.2f} GB/s"
    say(f"{reached}; the gradients are {size / 1e9:.3f} GB in {run.reduce}")
    return size / rate


def prepare(method: Method, run: Run, world: World) -> nn.Module:
    """Compiles block by block where asked, and distributes them over the ranks."""
    if run.compile:
        refuse_uncompilable(world.device)
        compile_blocks(method)
    return data_parallel(method, world, run.shard, run.gather == "bf16", run.reduce == "bf16")


def monitored_images(recipe: Recipe, catalogue: Catalogue, sources: data.Sources, world: World) -> Tensor | None:
    """Images that are looked at all through the run, seen as in the evaluation; None on ranks that do not look."""
    run, view = recipe.run, next(iter(sources.views.values())).view
    if not run.monitor or not (world.first or run.shard > 1):
        return None
    if recipe.evaluate is not None:
        view = make(catalogue, "views", recipe.evaluate.view, place="evaluate.view")
    return monitor_pixels(sources.data, view, run.monitor, run.seed)


def probing(recipe: Recipe, order: data.Order) -> int:
    """Steps between probes during the run; 0: there are none."""
    every = None if recipe.evaluate is None else recipe.evaluate.every
    return 0 if every is None else max(1, every.steps(order.epoch_steps))
