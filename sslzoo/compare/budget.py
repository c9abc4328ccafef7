"""What is held equal? Images, steps, arithmetic or device time; and what must scale when a run's length does.

A run that is a tenth as long with the warm-up, the schedules and the teacher's momentum of the long one is another
experiment: it ends in its warm-up, and its teacher is still mostly its starting weights. So durations scale with the
length, and so does the teacher's horizon, 1 / (1 - momentum).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field

from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import Flow, build_sources
from sslzoo.recipe.recipe import Recipe, schedules
from sslzoo.recipe.schedule import Duration

TIMED = 12  # steps whose time is measured for a budget of device time
WARM = 4  # steps before them


class Budget(BaseModel):
    """The key `budget` of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    equal: Literal["images", "steps", "flops", "seconds"] = "images"
    length: Duration | None = Field(None, description="of the baseline; its recipe's own if left out")


@dataclass(frozen=True)
class Cost:
    """What training costs, by the recipe alone."""

    batch: int
    flops: float  # of an image, forward and backward
    images: int  # in the training set
    own: int  # steps that the recipe itself asks for
    seconds: float = 0.0  # of a step on this machine; measured where the budget is device time

    @property
    def epoch_steps(self) -> int:
        """Steps in an epoch."""
        return self.images // self.batch


def cost_of(recipe: Recipe, installed: Catalogue, budget: Budget, flow: Flow) -> Cost:
    """What a step of a recipe costs, and how many it asks for; opens the data set for its length."""
    images, run = len(build_sources(recipe, installed).data), recipe.run
    own = run.length(images // run.batch)
    seconds = _measure(recipe, installed, flow) if budget.equal == "seconds" else 0.0
    return Cost(run.batch, flow.flops, images, own, seconds)


def steps_for(cost: Cost, measure: Cost, budget: Budget) -> int:
    """Steps of a variant, so that it spends what the baseline (`measure`) spends."""
    base = measure.own if budget.length is None else budget.length.steps(measure.epoch_steps)
    images = base * measure.batch
    spent = {
        "images": images / cost.batch,
        "steps": base,
        "flops": images * measure.flops / (cost.flops * cost.batch),
        "seconds": base * measure.seconds / cost.seconds if cost.seconds else 0.0,
    }
    return max(1, round(spent[budget.equal]))


def changes(recipe: Recipe, installed: Catalogue, cost: Cost, steps: int) -> Iterator[str]:
    """Changes to a recipe that make it `steps` long: its length, durations, and the horizon of teachers."""
    factor = steps / cost.own
    if factor == 1 and recipe.run.steps:
        return
    yield f"run.steps={steps}"
    if factor == 1:
        return
    for place, value in schedules(recipe, installed):
        scaled = _scaled(value, factor, cost.epoch_steps)
        if place.startswith("targets.") and place.endswith(".momentum"):
            scaled = _follows(scaled, factor)
        if scaled != value:
            yield f"{place}={yaml.safe_dump(scaled, default_flow_style=True, width=100_000).split(chr(10))[0]}"


def _scaled(spec: Any, factor: float, epoch_steps: int) -> Any:
    """A schedule with its durations `factor` times as long, in steps."""
    if not isinstance(spec, Mapping):
        return spec
    found = dict(spec)
    if "over" in found:
        found["over"] = f"{_long(found['over'], factor, epoch_steps)} steps"
    if isinstance(found.get("warmup"), Mapping):
        warm = dict(found["warmup"])
        unit = "epochs" if "epochs" in warm else "steps"
        amount = _long({unit: warm.pop(unit)}, factor, epoch_steps)
        found["warmup"] = {"steps": amount} | warm
    return found


def _long(duration: Any, factor: float, epoch_steps: int) -> int:
    known = Duration.parse(duration)
    return round(known.amount * (epoch_steps if known.unit == "epochs" else 1) * factor)


def _follows(spec: Any, factor: float) -> Any:
    """A momentum whose horizon is `factor` times as long: 1 - m is divided by it."""
    if isinstance(spec, Mapping):
        return {key: _follows(value, factor) if key in ("linear", "cosine") else value for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [_follows(one, factor) for one in spec]
    return min(1.0, max(0.0, round(1 - (1 - float(spec)) / factor, 6)))


def _measure(recipe: Recipe, installed: Catalogue, flow: Flow) -> float:
    """Seconds of a step here: the median of a few, trained for nothing in a folder that is thrown away."""
    from sslzoo.run.folder import Folder
    from sslzoo.run.parallel import World
    from sslzoo.train import train

    steps = {"steps": WARM + TIMED, "epochs": None, "log_every": 1, "monitor": 0}
    run = recipe.run.model_copy(update=steps | {"save_every": Duration(10 * TIMED, "steps")})
    device = torch.device("cuda" if torch.cuda.is_available() and run.device != "cpu" else "cpu")
    with TemporaryDirectory() as folder:
        train(replace(recipe, run=run, evaluate=None), installed, flow, Path(folder), World(device=device))
        rates = [line["images_per_second"] for line in Folder(Path(folder)).metrics.read()[WARM:]]
    return run.batch / sorted(rates)[len(rates) // 2]
