"""How fast is a step here, and where does its time go? The loop's own, timed by stages, beside a measured ceiling."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from sslzoo.contracts import Batch
from sslzoo.errors import RunError
from sslzoo.plugins import Catalogue
from sslzoo.progress import Progress
from sslzoo.recipe.build import build, build_optimizer
from sslzoo.recipe.fit import check
from sslzoo.recipe.precision import settled
from sslzoo.recipe.recipe import Recipe
from sslzoo.run import data, loader, optim
from sslzoo.run.folder import Folder
from sslzoo.run.guard import Guard
from sslzoo.run.metrics import peak_memory
from sslzoo.run.parallel import barrier
from sslzoo.run.processes import World, gather_objects
from sslzoo.run.stop import Stop
from sslzoo.step import Method
from sslzoo.train import Learner, prepare

READY = 4  # ready-made micro-batches, used in turn; their masks are of steps all along a run, as in the count of FLOPs
ENDLESS = 10**6  # steps of a run that is never seen to its end: its real batches are those of its beginning
STEPS = 10  # of a round, if not said otherwise
STAGES = ("wait", "data", "targets", "forward", "loss", "backward", "optimizer", "EMA", "rest")


@dataclass(frozen=True)
class Result:
    """What was measured of a recipe's step, and of what. Seconds, bytes, FLOP."""

    recipe: str
    device: str
    processes: int
    threads: int
    torch: str
    precision: str  # of matrix products
    compile: bool
    data: str  # ready or real
    parallel: str
    images: int  # of a step, in all processes
    rounds: tuple[float, ...]  # images a second of each round of steps
    step: float  # median seconds of a step
    slowest: float
    stages: Mapping[str, float]  # seconds of a step in each stage, means; they add up to the mean step
    waited: float  # share of the time that the loop waited for its loader
    stalls: int  # steps that waited for longer than a tenth of the median step
    steps: int  # that were timed
    flops: float  # of one image, forward and backward, counted; mean over mask draws
    ceiling: float  # FLOP/s of a large matrix product in this precision, on one device, best of this run
    memory: int | None  # peak bytes: of the device, or of this process on a CPU where it is the only recipe

    @property
    def rate(self) -> float:
        """Images a second: the median round."""
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        """Images a second: the best round."""
        return max(self.rounds)

    @property
    def utilisation(self) -> float:
        """Share of the measured ceiling that the counted arithmetic reaches."""
        return self.rate * self.flops / (self.ceiling * self.processes)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, with what follows from it."""
        return asdict(self) | {"rate": self.rate, "best": self.best, "utilisation": self.utilisation}


def read(found: Mapping[str, Any]) -> Result:
    """A result from its JSON.

    Raises:
        KeyError: it is no result.
    """
    return Result(**{name: found[name] for name in Result.__dataclass_fields__})


def ratios(one: Result, other: Result, apart: bool = False) -> tuple[float, float]:
    """How many times as fast one is as another: median over rounds (each beside its neighbor), and best by best.

    `apart`: their rounds were not taken in turn, so the medians are compared.
    """
    pairs = [(one.rate, other.rate)] if apart else zip(one.rounds, other.rounds, strict=True)
    return statistics.median(a / b for a, b in pairs), one.best / other.best


def unlike(
    one: Result, other: Result, what: Sequence[str] = ("device", "processes", "precision", "images")
) -> list[str]:
    """In what two results differ that is no difference of speed; two measured in one run differ so on purpose alone."""
    return [f"{name} ({a}, {b})" for name in what if (a := getattr(one, name)) != (b := getattr(other, name))]


def measure(
    given: Sequence[tuple[Recipe, Catalogue]], world: World, *, real: bool, steps: int | None, rounds: int
) -> list[Result]:
    """Times the recipes' steps in one run, in turn: `rounds` rounds of `steps` steps each, after a warm-up.

    A step is one micro-batch on each process, as large as a run on these processes would take. Nothing is waited for
    within a round but what the loop itself waits for. With real data each round has a loader of its own.

    Raises:
        RunError: rounds of so few steps would not tell how fast the loader is.
    """
    with tempfile.TemporaryDirectory() as folder:
        timed = [_Timed(*one, world, Path(folder), real) for one in given]
        steps = _steps(steps, [one.ahead for one in timed])
        for one in timed:
            one.warm_up(len(timed) == 1)
        for _ in range(rounds):
            for one in timed:
                one.ceiling.append(matmul_rate(one.learner))
                one.round(steps)
        return [one.result() for one in timed]


def _steps(asked: int | None, loaders: Sequence[loader.Ahead]) -> int:
    """Steps of a round: as many as loaders hold micro-batches at least. Their workers deliver in bursts."""
    widest = max(loaders, key=lambda one: one.workers * one.prefetch)
    least = widest.workers * widest.prefetch
    if asked is not None and asked < least:
        raise RunError(
            f"--steps {asked}: real data want {least} at least, for {widest.workers} loader workers deliver together, "
            f"up to {widest.prefetch} micro-batches ahead each"
        )
    return max(STEPS, least) if asked is None else asked


def matmul_rate(learner: Learner, tries: int = 4) -> float:
    """FLOP/s of a large matrix product in the precision the recipe trains in: the best of a few."""
    device = learner.world.device
    side = 8192 if device.type == "cuda" else 768
    a = torch.randn(side, side, device=device)
    with learner.cast():
        a = torch.mm(a, a)  # of the dtype that autocast chooses
        best = math.inf
        for _ in range(tries):
            _wait(device)
            begin = time.perf_counter()
            torch.mm(a, a)
            _wait(device)
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


class Timeline:
    """When each stage was entered and left, on the device's own clock; nothing is waited for until it is read.

    A stage within another takes its time from it, so all stages add up to the whole.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []  # from here on, this is going on
        self.inside: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """While something is going on."""
        self.enter(name)
        yield
        self.leave()

    def enter(self, name: str) -> None:
        """From now on."""
        self.inside.append(name)
        self.mark()

    def leave(self) -> None:
        """Until now."""
        self.inside.pop()
        self.mark()

    def mark(self) -> None:
        """Notes the time; what is in no stage is rest."""
        self.marks.append((self.inside[-1] if self.inside else "rest", self._now()))

    def read(self) -> Counter[str]:
        """Seconds of each stage up to the last mark, which is where the next reading begins; waits for the device."""
        _wait(self.device)
        found: Counter[str] = Counter()
        for (name, begin), (_, end) in pairwise(self.marks):
            found[name] += begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
        self.marks = self.marks[-1:]
        return found

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def attach(self, method: Method) -> None:
        """Takes targets and losses apart from the rest of the forward pass, from now on."""
        for name, parts in (("targets", method.targets), ("loss", method.losses)):
            for part in parts.values():
                part.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
                part.register_forward_hook(lambda *_: self.leave())


class _Timed:
    """One recipe, ready to take steps."""

    def __init__(self, recipe: Recipe, installed: Catalogue, world: World, folder: Path, real: bool) -> None:
        recipe = settled(recipe, world)
        self.recipe, self.world, self.real = recipe, world, real
        flow = check(recipe, installed)
        self.flops, before = flow.flops, _allocated(world.device)
        method, sources = build(recipe if real else replace(recipe, data={}), installed)
        method.to(world.device).train()
        self.model: nn.Module = prepare(method, recipe.run, world)
        optimizer = build_optimizer(recipe, installed, method)
        guard = Guard(Folder(folder), world, Stop())
        self.learner = Learner(recipe.run, recipe.optim_keys, method, self.model, optimizer, guard, world)
        self.images = data.split(recipe.run.batch, world.size, recipe.run.micro).micro
        self.own = _allocated(world.device) - before  # bytes, before the first step
        sources = sources if real else replace(sources, data=_Noise())
        steps, workers = (ENDLESS, recipe.run.workers) if real else (READY, 0)
        micros = data.undivided(sources, method.student.encoder, self.images, recipe.run.seed, world, steps)
        self.ahead = loader.ahead(micros, workers, world.local_size)
        if workers:  # how many steps are taken follows from it, so all ranks take the least that one has room for
            said = gather_objects((self.ahead.workers, self.ahead.prefetch), world)
            least = {"workers": min(one for one, _ in said), "prefetch": min(one for _, one in said)}
            self.ahead = replace(self.ahead, **least)
        self._load = lambda start: loader.load(micros, start, steps, self.ahead, pin=world.device.type == "cuda")
        self.batches: Iterator[Batch] = iter(()) if real else cycle(list(self._load(0)))
        self.timeline, self.taken = Timeline(world.device), 0
        self.ceiling: list[float] = []
        self.rounds: list[float] = []
        self.took: list[float] = []
        self.waits: list[float] = []
        self.stages: Counter[str] = Counter()
        self.memory: int | None = None
        self.timeline.attach(method)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Real data come from a loader that begins here and ends here.

        One that went on would make batches ahead of a round while nobody times them, and take cores from another
        recipe's. The steps of each worker's first batch are taken here, untimed.
        """
        if self.real:
            self.batches = self._load(self.taken)
            for _ in range(self.ahead.workers):
                self._step()
            self.waits = self.waits[: -self.ahead.workers or None]
        yield
        if self.real:
            self.batches = iter(())

    def warm_up(self, alone: bool) -> None:
        """Meets every shape, so that what is compiled is compiled here; sees how much memory a step takes."""
        device = self.world.device
        others = _allocated(device) - self.own
        with self._loading():
            for _ in range(READY):
                self._step()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                self._step()
                self.memory = peak_memory(device) - others
            elif alone:
                self.memory = peak_memory(device)
        self.timeline.read()
        self.waits.clear()

    def round(self, steps: int) -> None:
        """Some steps on end."""
        with self._loading():
            self._time(steps)

    def _time(self, steps: int) -> None:
        _wait(self.world.device)
        barrier()
        begin = time.perf_counter()
        self.timeline.marks.clear()
        self.timeline.mark()
        for _ in range(steps):
            self._step()
        _wait(self.world.device)
        self.rounds.append(self.images * self.world.size * steps / (time.perf_counter() - begin))
        self.took += _between([when for name, when in self.timeline.marks if name == "wait"], self.world.device)
        self.stages.update(self.timeline.read())

    def _step(self) -> None:
        at, learner = Progress(self.taken, ENDLESS), self.learner
        optim.set_schedules(learner.optimizer, learner.moves, at)
        begin = time.perf_counter()
        with self.timeline.stage("wait"):
            batch = next(self.batches)
        self.waits.append(time.perf_counter() - begin)
        learner.step([batch], at, stage=self.timeline.stage)
        self.taken += 1

    def result(self) -> Result:
        """What was found."""
        run, device, steps = self.recipe.run, self.world.device, len(self.waits)
        whole = sum(self.stages.values())
        step = statistics.median(self.took) if self.took else whole / steps
        with self.learner.cast():
            one = torch.ones(2, 2, device=device)
            precision = str((one @ one).dtype).removeprefix("torch.")
        return Result(
            recipe=self.recipe.name,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            processes=self.world.size,
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            precision=precision,
            compile=run.compile,
            data="real" if self.real else "ready",
            parallel=self.world.alone_as,
            images=self.images * self.world.size,
            rounds=tuple(self.rounds),
            step=step,
            slowest=max(self.took, default=step),
            stages={name: self.stages[name] / steps for name in STAGES},
            waited=sum(self.waits) / whole,
            stalls=sum(one > step / 10 for one in self.waits),
            steps=steps,
            flops=self.flops,
            ceiling=max(self.ceiling),
            memory=self.memory,
        )


class _Noise:
    """A data set of noise, as large as pictures are; it stands for one that costs nothing to read."""

    tasks: Any = MappingProxyType({})

    def __len__(self) -> int:
        return 1 << 20

    def image(self, i: int) -> Image.Image:
        """Noise of its own for each image."""
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8))

    def label(self, i: int) -> Mapping[str, int]:
        """None."""
        return {}


def _between(marks: Sequence[Any], device: torch.device) -> list[float]:
    """Seconds from each mark to the next."""
    return [a.elapsed_time(b) / 1e3 if device.type == "cuda" else b - a for a, b in pairwise(marks)]


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
