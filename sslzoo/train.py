"""The run, top to bottom: build, restore, loop, save."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo import checkpoint, data, optim
from sslzoo.build import Flow, build, make
from sslzoo.contracts import Batch
from sslzoo.errors import RunError
from sslzoo.folder import Folder
from sslzoo.metrics import collect, mask_shares, peak_flops, rankme
from sslzoo.parallel import World, all_sum, blocks, meet, spread, together
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe import Recipe, Run, resolve
from sslzoo.rng import key
from sslzoo.step import Parts
from sslzoo.stop import Stop, Stopped

Say = Callable[[str], None]


def _silent(*_words: Any) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Watch:
    """How a run is followed and stopped from outside."""

    say: Say = _silent  # a line for a person
    begin: Callable[[int, int], None] = _silent  # the step it starts from, and its last
    show: Callable[[Progress, dict[str, float]], None] = _silent  # a line of metrics
    stop: Stop = field(default_factory=Stop)


def train(
    recipe: Recipe,
    catalogue: Catalogue,
    flow: Flow,
    out: Path,
    world: World,
    watch: Watch | None = None,
) -> Parts:
    """Trains a recipe in a run folder, from its newest checkpoint if it has one; returns the trained parts.

    `watch` is told what happens, on rank 0 only. When any rank is asked to stop, all agree on a step, save and leave.

    Raises:
        Stopped: it was asked to stop; the checkpoint of its last step is on disk.
        RunError: the folder, its checkpoints or its data cannot be used, or three steps in a row were not finite.
    """
    run, folder, watch = recipe.run, Folder(out), watch or Watch()
    if world.first:
        folder.prepare(resolve(recipe, catalogue))
    else:
        watch = Watch(stop=watch.stop)
    parts, sources = build(recipe, catalogue)
    parts.to(world.device).train()
    model = prepare(parts, run, world, bool(flow.unused))
    optimizer = optim.make(parts, recipe.optim)

    shares = data.split(run.batch, world.size, run.micro)
    order = data.Order(len(sources.data), run.batch, run.seed)
    steps = run.steps or int((run.epochs or 0) * order.epoch_steps)
    start = resume(folder, parts, optimizer, world, watch.say)
    watch.begin(start, steps)
    watch.say(
        f"steps {start} to {steps}, {order.epoch_steps} an epoch; batch {run.batch} = {world.size} process"
        f"{'es' if world.size > 1 else ''} x {shares.accumulate} x {shares.micro}, on {world.device}, {run.precision}"
    )
    if start >= steps:
        return parts

    grids = {name: parts.student.encoder.grid(views.view.size) for name, views in sources.views.items()}
    micros = data.Micros(sources, grids, order, shares, world.rank)
    batches = data.loader(micros, start, steps, run.workers, pin=world.device.type == "cuda")
    held = held_pixels(recipe, catalogue, sources) if world.first or run.shard > 1 else None
    cast = torch.autocast(world.device.type, torch.bfloat16, enabled=run.precision == "bf16")
    save_every, held_every = (max(1, x.steps(order.epoch_steps)) for x in (run.save_every, run.held_every))
    milestone = run.milestones.steps(order.epoch_steps) if run.milestones else None
    guard, unreadable = Guard(folder, world, watch.stop), Unreadable(folder, run.unreadable, watch.say)
    clock = Clock(flow.flops, world, run.batch)

    for step in range(start, steps):
        at = Progress(step, steps, order.epoch_steps)
        log_due = at.last or (step + 1) % run.log_every == 0
        numbers = optim.set_schedules(optimizer, recipe.optim, at)
        fresh = [clock.waiting(batches) for _ in range(shares.accumulate)]
        loss, metrics = torch.zeros((), device=world.device), {}
        for part, batch in enumerate(data.weigh(fresh, world)):
            torch.manual_seed(key(run.seed, "noise", step, world.rank, part))
            with cast, together(model, part + 1 == shares.accumulate):
                value, metrics = model(batch, at, log_due)
                (value / shares.accumulate).backward()
            loss += value.detach() / shares.accumulate
        norm = optim.clip(parts, recipe.optim.clip, recipe.optim.clip_each)
        finite = guard.check(at, loss, norm, fresh)
        optim.step(optimizer, finite)
        for target in parts.targets.values():
            target.after_step(parts.student, at)  # teachers follow here, and only here

        unreadable.note(fresh, (step + 1 - start) * shares.micro * shares.accumulate)
        if log_due:
            metrics |= {"loss": loss, "grad_norm": norm} | own_metrics(parts, at)
            line = {"step": step + 1, "epoch": (step + 1) / order.epoch_steps} | collect(metrics) | numbers
            line |= mask_shares(fresh[0], grids) | clock.read(step + 1 - start)
            if held is not None and ((step + 1) % held_every < run.log_every or at.last):
                line["rankme"] = rank_of(parts, held, world.device, cast)
            if world.first:
                folder.metrics.write(line)
                catalogue.manager.hook.sslzoo_log(metrics=line, at=at, folder=folder.path)
                watch.show(at, line)
        if at.last or guard.stopping or (step + 1) % save_every == 0:
            guard.settle()
            checkpoint.save(folder.checkpoints, step + 1, parts, optimizer, write=world.first)
            if world.first:
                checkpoint.prune(folder.checkpoints, run.keep, milestone)
        if guard.stopping and not at.last:
            meet()  # nobody leaves before the checkpoint is on disk
            raise Stopped(f"{guard.stopping} after step {step + 1} of {steps}: saved; the same command goes on")
    return parts


def resume(folder: Folder, parts: Parts, optimizer: torch.optim.Optimizer, world: World, say: Say) -> int:
    """Restores the newest checkpoint, if any; returns the steps done."""
    saved = checkpoint.newest(folder.checkpoints, lambda text: say(f"warning: {text}"))
    if saved is not None:
        checkpoint.restore(saved, parts, optimizer)
        say(f"resumed from {saved.path.name}")
    step = 0 if saved is None else saved.step
    if world.first:
        folder.metrics.rewind(step)
    return step


def prepare(parts: Parts, run: Run, world: World, unused: bool) -> nn.Module:
    """Compiles block by block where asked, and spreads the parts over the ranks."""
    if run.compile:
        for block in blocks(parts):
            block.compile(dynamic=None)
    return spread(parts, world, run.shard, unused)


def own_metrics(parts: Parts, at: Progress) -> dict[str, Tensor]:
    """What targets and predictors say of themselves, as 0-d tensors."""
    found = {}
    named: dict[str, Any] = {"predictor": parts.student.predictor, **parts.targets}
    for name, part in named.items():
        if hasattr(part, "metrics"):
            found |= {f"{name}/{key}": value for key, value in part.metrics(at).items()}
    return found


@dataclass
class Guard:
    """Sees that numbers stay finite and whether anybody asked to stop, without waiting for the device.

    A step that is not finite changes no weights; its images are written to nonfinite/; three in a row end the run.
    All ranks vote in one sum a step. On a GPU its result is read a fixed number of steps later, when it has long
    arrived: so no step waits, and all ranks learn of it at the same step.
    """

    folder: Folder
    world: World
    stop: Stop
    limit: int = 3
    row: int = 0
    stopping: str = ""
    pending: deque[tuple[Progress, Tensor, Any, tuple[int, ...]]] = field(default_factory=deque)

    def check(self, at: Progress, loss: Tensor, norm: Tensor, batches: list[Batch]) -> Tensor:
        """Whether loss and gradients of all ranks are finite, 0-d bool on the device."""
        bad = (~(loss.isfinite() & norm.isfinite())).float()
        votes = all_sum(torch.stack([bad, torch.full_like(bad, bool(self.stop.asked))]))
        samples = tuple(index for batch in batches for index in batch.samples)
        copied, done = votes.to("cpu", non_blocking=True), None
        if votes.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self.pending.append((at, copied, done, samples))
        self.settle(later=0 if done is None else 8)
        return votes[0] == 0

    def settle(self, later: int = 0) -> None:
        """Deals with the votes of all steps but the last few."""
        while len(self.pending) > later:
            at, votes, done, samples = self.pending.popleft()
            if done is not None:
                done.synchronize()
            bad, asked = votes.tolist()
            self.row = self.row + 1 if bad else 0
            if bad:
                self._report(at, samples)
            if asked:
                self.stopping = f"stopped by {self.stop.asked or 'a signal to another process'}"

    def _report(self, at: Progress, samples: tuple[int, ...]) -> None:
        place = self.folder.path / "nonfinite"
        place.mkdir(exist_ok=True)
        name = f"step-{at.step + 1:09d}-rank-{self.world.rank}.txt"
        (place / name).write_text("\n".join(map(str, samples)) + "\n")
        if self.row >= self.limit:
            raise RunError(
                f"{self.row} steps in a row, the last of them step {at.step + 1}, had a loss or gradient that is not "
                f"finite; the images of their batches are listed in {place}; lower the learning rate, clip gradients "
                "(optim.clip), or try run.precision: fp32"
            )


@dataclass
class Unreadable:
    """Counts images that could not be read; writes them down, and refuses when they are too many."""

    folder: Folder
    most: float
    say: Say
    count: int = 0

    def note(self, batches: list[Batch], seen: int) -> None:
        """Takes the failures of a step; `seen` images were drawn so far."""
        failed = [one for batch in batches for one in batch.unreadable]
        if not failed:
            return
        self.count += len(failed)
        self.folder.note("unreadable.jsonl", ({"image": index, "error": error} for index, error in failed))
        self.say(f"warning: {self.count} of {seen} images could not be read; the last: image {failed[-1][0]}")
        if seen >= 100 and self.count > self.most * seen:
            raise RunError(
                f"{self.count} of {seen} images could not be read, more than run.unreadable = {self.most:g} allows; "
                f"they are listed in {self.folder.path / 'unreadable.jsonl'}"
            )


@dataclass
class Clock:
    """Measures images per second, the share of time spent waiting for data, and the share of the device's peak."""

    flops: float  # of one image, forward and backward
    world: World
    batch: int
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    steps: int = 0

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch, timed."""
        start = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - start
        return batch

    def read(self, steps: int) -> dict[str, float]:
        """Rates since the last reading; `steps` were done in this process so far."""
        now = time.perf_counter()
        took, rate = now - self.since, (steps - self.steps) * self.batch / (now - self.since)
        found = {"images_per_second": rate, "data_wait": min(1.0, self.waited / took)}
        peak = peak_flops(self.world.device)
        if peak:
            found["mfu"] = rate * self.flops / (peak * self.world.size)
        self.since, self.waited, self.steps = now, 0.0, steps
        return found


def held_pixels(recipe: Recipe, catalogue: Catalogue, sources: data.Sources) -> Tensor | None:
    """A fixed batch of images, for figures that must be comparable over time: [n 3 H W]; none where run.held is 0."""
    if not recipe.run.held:
        return None
    views = next(iter(sources.views.values())).view
    view = views if recipe.evaluate is None else make(catalogue, "views", recipe.evaluate.view)
    pixels = []
    for index in range(min(recipe.run.held, len(sources.data))):
        try:
            image = sources.data.image(index)
        except (OSError, ValueError, SyntaxError):
            continue
        data.seed_views(key(recipe.run.seed, "held", index))
        pixels.append(view(image)[0])
    if not pixels:
        raise RunError(f"none of the first {recipe.run.held} images could be read")
    return torch.stack(pixels)


@torch.no_grad()
def rank_of(parts: Parts, pixels: Tensor, device: torch.device, cast: AbstractContextManager[Any]) -> float:
    """RankMe of the summaries of held images, from the teacher where there is one."""
    encoder = evaluated_encoder(parts)
    mode = encoder.training
    encoder.eval()
    with cast:
        found = [encoder(some.to(device)).summary.float() for some in pixels.split(64)]
    encoder.train(mode)
    return rankme(torch.cat(found)).item()


def evaluated_encoder(parts: Parts, network: str = "auto") -> nn.Module:
    """The encoder to evaluate: of a named target generator, of the student, or of the first teacher (auto)."""
    owners: dict[str, Any] = {
        name: target.encoder for name, target in parts.targets.items() if hasattr(target, "encoder")
    }
    owners["student"] = parts.student.encoder
    if network == "auto":
        return next(iter(owners.values()))
    if network not in owners:
        raise RunError(f"no network is called {network!r}; there is: {', '.join(owners)}")
    return owners[network]
