"""What is held equal? Images, steps, arithmetic, tokens or device time; and what must scale when a run's length does.

A run that is a tenth as long with the warm-up, the schedules and the teacher's momentum of the long one is another
experiment: it ends in its warm-up, and its teacher is still mostly its starting weights. So durations scale with the
length, and so does the teacher's horizon, 1 / (1 - momentum).
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field

from sslzoo import files
from sslzoo.errors import UserError
from sslzoo.plugins import Catalogue
from sslzoo.recipe import yamltext
from sslzoo.recipe.build import build_sources
from sslzoo.recipe.fit import Flow
from sslzoo.recipe.recipe import GROUPS, Recipe, resolve, schedules
from sslzoo.recipe.schedule import Duration, Schedule
from sslzoo.recipe.signature import Keys
from sslzoo.run.data import Order

TIMED = 12  # steps whose time is measured for a budget of device time
WARM = 4  # steps before them


class Budget(Keys):
    """The key `budget` of a study."""

    equal: Literal["images", "steps", "flops", "tokens", "seconds"] = "images"
    length: Annotated[Duration, Field(gt=0)] | None = Field(
        None, description="of the baseline; its recipe's own if left out"
    )


@dataclass(frozen=True)
class Cost:
    """What training costs, by the recipe alone."""

    batch: int
    flops: float  # of an image, forward and backward
    images: int  # in the training set
    own: int  # steps that the recipe itself asks for
    patches: float = 0.0  # of an image that the student sees
    seconds: float = 0.0  # of a step on a device here; measured where the budget is device time

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return self.images // self.batch


@dataclass(frozen=True)
class Stretch:
    """How many times as long durations become, by their unit."""

    steps: float
    epochs: float

    @classmethod
    def of(cls, base: Cost, cost: Cost, steps: int) -> Stretch:
        """What was so many images of the base's run is the same share of the images now, whatever batch and data."""
        images = steps * cost.batch / (base.own * base.batch)
        return cls(steps / base.own, images * base.images / cost.images)


def length_of(recipe: Recipe, installed: Catalogue) -> Cost:
    """A recipe's batch and length; opens the data set for its own length."""
    from sslzoo.train import length

    images, run = len(build_sources(recipe, installed).data), recipe.run
    order = Order(images, run.batch, run.seed)
    return Cost(run.batch, 0.0, images, length(recipe, installed, order, lambda _: None))


def cost_of(
    recipe: Recipe, installed: Catalogue, budget: Budget, flow: Flow, kept: Path, *, measure: bool = True
) -> Cost:
    """What a step of a recipe costs, and how many it asks for; opens the data set for its length.

    Seconds are measured once for a study and `kept` in a file of it, for another time they would be others.

    Raises:
        UserError: no step is asked for; or seconds are wanted that were not measured, and `measure` is false.
    """
    seconds = _seconds(recipe, installed, flow, kept, measure) if budget.equal == "seconds" else 0.0
    return replace(length_of(recipe, installed), flops=flow.flops, patches=flow.patches, seconds=seconds)


def steps_for(cost: Cost, measure: Cost, budget: Budget) -> int:
    """Steps of a variant, so that it spends what the baseline (`measure`) spends."""
    base = measure.own if budget.length is None else budget.length.steps(measure.epoch_steps)
    images = base * measure.batch
    spent = {
        "images": images / cost.batch,
        "steps": base,
        "flops": images * measure.flops / (cost.flops * cost.batch),
        "tokens": images * measure.patches / (cost.patches * cost.batch) if cost.patches else 0.0,
        "seconds": base * measure.seconds / cost.seconds if cost.seconds else 0.0,
    }
    return max(1, round(spent[budget.equal]))


def changes(recipe: Recipe, installed: Catalogue, base: Cost, cost: Cost, steps: int) -> Iterator[str]:
    """Changes to a variant that make it `steps` long: its length, durations, and the horizon of teachers.

    `base` is the length of its base recipe, for which the durations were written; the variant may have changed the
    batch or the data since.
    """
    if recipe.run.steps != steps:
        yield f"run.steps={steps}"
    by = Stretch.of(base, cost, steps)
    for place, value in schedules(recipe, installed):
        if place.startswith(GROUPS):  # all at once: a pattern has dots of its own
            continue
        horizon = by.steps if place.startswith("targets.") and place.endswith(".momentum") else 1.0
        scaled = _scaled(value, by, horizon)
        if scaled != value:
            yield f"{place}={yamltext.written(scaled)}"
    groups = recipe.optim.get("groups", {})
    scaled = {pattern: {key: _scaled(one, by) for key, one in factors.items()} for pattern, factors in groups.items()}
    if scaled != groups:
        yield f"{GROUPS}={yamltext.written(scaled)}"


def _scaled(spec: Any, by: Stretch, horizon: float = 1.0) -> Any:
    """A schedule with its durations as long as `by` says, and of a momentum m, 1 - m divided by `horizon`."""
    found = _stretched(spec, by, horizon)
    return spec if Schedule.parse(found) == Schedule.parse(spec) else found


def _stretched(spec: Any, by: Stretch, horizon: float) -> Any:
    if isinstance(spec, list | tuple):
        return [_stretched(one, by, horizon) for one in spec]
    if not isinstance(spec, Mapping):
        return spec if horizon == 1 else _longer_horizon(spec, horizon)
    found = {}
    for key, value in spec.items():
        if key == "over":
            found[key] = str(_long(value, by))
        elif key in ("epochs", "steps"):  # of a warm-up
            found[key] = _long({key: value}, by).amount
        elif key == "piecewise":
            found[key] = {str(_long(start, by)): _stretched(piece, by, horizon) for start, piece in value.items()}
        elif key in ("counting", "each", "stretch", "truncate"):
            found[key] = value
        else:
            found[key] = _stretched(value, by, horizon)
    return found


def _long(duration: Any, by: Stretch) -> Duration:
    """A duration as long as `by` says, in its own unit."""
    known = Duration.parse(duration)
    if known.unit == "epochs":
        return Duration(round(known.amount * by.epochs, 6), "epochs")
    return Duration(round(known.amount * by.steps), "steps")


def _longer_horizon(momentum: Any, factor: float) -> float:
    """A momentum whose horizon is `factor` times as long: 1 - m is divided by it."""
    return min(1.0, max(0.0, round(1 - (1 - float(momentum)) / factor, 6)))


def _seconds(recipe: Recipe, installed: Catalogue, flow: Flow, kept: Path, measure: bool) -> float:
    tree = yaml.safe_load(resolve(recipe, installed))
    trained = json.dumps({key: value for key, value in tree.items() if key not in ("name", "evaluate")}, default=str)
    key = hashlib.sha256(trained.encode()).hexdigest()[:16]
    known = files.read_object(kept, lambda row: all(type(value) is float for value in row.values()))[0]
    if key not in known:
        if not measure:
            raise UserError(
                "the budget is seconds, and those of a step of this variant are not measured yet: `sslzoo compare "
                "STUDY --dry-run` trains a few steps of each, on a machine such as will train them all"
            )
        known[key] = _measure(recipe, installed, flow)
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(kept, json.dumps(known, indent=2))
    return known[key]


def _measure(recipe: Recipe, installed: Catalogue, flow: Flow) -> float:
    """Device seconds of a step here: the median of a few, trained for nothing in a folder that is thrown away.

    Twice the same steps, of which the second are told: a data set may keep images that it made or decoded, and the
    variant measured first would pay for them all.
    """
    from sslzoo.run.folder import Folder
    from sslzoo.run.processes import World
    from sslzoo.train import train

    steps = {"steps": WARM + TIMED, "epochs": None, "log_every": 1, "monitor": 0}
    run = recipe.run.model_copy(update=steps | {"save_every": Duration(10 * TIMED, "steps")})
    device = torch.device("cuda" if torch.cuda.is_available() and run.device != "cpu" else "cpu")
    read: list[float] = []
    for _ in range(2):
        with TemporaryDirectory() as folder:
            train(replace(recipe, run=run, evaluate=None), installed, flow, Path(folder), World(device=device))
            read = [line["device_seconds"] for line in Folder(Path(folder)).metrics.read()[WARM - 1 :]]
    gc.collect()
    torch.cuda.empty_cache()  # the cells are other processes on the same card
    steps = sorted(after - before for before, after in pairwise(read))
    return steps[len(steps) // 2]
