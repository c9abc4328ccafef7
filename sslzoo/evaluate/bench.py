"""With which data, view and probes are encoders compared? Opens the section `evaluate`; restores encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from sslzoo.contracts import CPU, Dataset, Features, View
from sslzoo.errors import Problem, RunError
from sslzoo.evaluate.features import extract
from sslzoo.evaluate.images import Images
from sslzoo.evaluate.kept import Kept, glimpse
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import attempt, build_method
from sslzoo.recipe.precision import settled
from sslzoo.recipe.recipe import Recipe, resolve
from sslzoo.recipe.sections import Evaluate
from sslzoo.run import checkpoint
from sslzoo.run.folder import Folder
from sslzoo.run.identity import identity
from sslzoo.run.processes import World
from sslzoo.step import Method

Figures = dict[str, float]
Answers = dict[str, Tensor]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """The data, view and probes of a recipe's section `evaluate`, ready for any number of encoders."""

    settings: Evaluate
    train: Dataset
    test: Dataset  # its classes numbered as those of train
    view: View
    augment: View | None  # with randomness, for probes that train on images
    probes: Mapping[str, Any]
    bf16: bool
    workers: int
    remarks: tuple[str, ...] = ()  # what a reader of the figures should know of the data

    @cached_property
    def seen(self) -> list[str]:
        """What some images of train and of test look like, read once for all encoders."""
        return [glimpse(self.train), glimpse(self.test)]

    def probe(self, encoder: nn.Module, device: torch.device, kept: Kept | None = None) -> tuple[Figures, Answers, int]:
        """Figures of an encoder, "probe/task/figure"; which test images it got right, "probe/task/correct".

        The third are how many of these are among the training images. Features are extracted once for all probes;
        those that are `kept` are read, and new ones are kept.
        """
        train, test = (self._features(encoder, side, device, kept) for side in ("train", "test"))
        found = {
            f"{name}/{figure}": value
            for name, probe in self.probes.items()
            for figure, value in probe(train, test, self.settings.seed).items()
        }
        answers = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        figures = {name: value for name, value in found.items() if name not in answers}
        return figures, answers, int(torch.isin(test.prints, train.prints).sum())

    def _features(self, encoder: nn.Module, side: str, device: torch.device, kept: Kept | None) -> Features:
        """Features of the data of a side, train or test, with the images behind them."""
        data, batch, pools = getattr(self, side), self.settings.batch, asked_pools(self.probes.values())
        how = {"device": device, "batch": batch, "workers": self.workers, "bf16": self.bf16}
        make = partial(extract, encoder, data, self.view, layers=self.settings.layers, pools=pools, **how)
        depends = [side, self.settings.layers, pools, device.type]
        found = make() if kept is None else kept.get(encoder, depends, device, make)
        return replace(found, images=Images(encoder, data, self.view, self.augment, kept=kept, **how))

    def chance(self) -> Figures:
        """What always telling the commonest class of the test set scores: "task"."""
        labeled = [self.test.label(i) for i in range(len(self.test))]
        found = {}
        for task, classes in self.test.tasks.items():
            labels = torch.tensor([one[task] for one in labeled])
            found[task] = labels.bincount(minlength=classes).max().item() / len(labels) * 100
        return found

    def conditions(self, recipe: Recipe, installed: Catalogue) -> dict[str, Any]:
        """Everything that the figures depend on beside the encoder: with every default, and what the data are."""
        found = asked(recipe, installed)
        sides = (("train", self.train), ("test", self.test))
        found["data"] = {name: found["data"][name] | identity(one) for name, one in sides}
        found["probes"] = {name: found["probes"][name] for name in self.probes}
        return found | {"precision": "bf16" if self.bf16 else "fp32", "remarks": list(self.remarks)}


def asked(recipe: Recipe, installed: Catalogue) -> dict[str, Any]:
    """What the section `evaluate` asks for, with every default: `Evaluation.answers` it. Opens no data."""
    full = yaml.safe_load(resolve(recipe, installed))["evaluate"]
    layers = full["layers"]
    return {
        "pooling": f"means over patches of the last {layers} blocks, side by side" if layers else "summary",
        "seed": full["seed"],
        "data": {name: full[name] for name in ("train", "test")},
        "view": full["view"],
        **({"augment": full["augment"]} if full.get("augment") else {}),
        "probes": {name: {"protocol": protocol(spec, installed)} | spec for name, spec in full["probes"].items()},
    }


def protocol(spec: Mapping[str, Any], installed: Catalogue) -> int:
    """Which of the meanings that figures of a probe have had are those of now."""
    return int(getattr(installed.find("probes", str(spec["use"])).make, "protocol", 1))


def asked_pools(probes: Iterable[Any]) -> tuple[str, ...]:
    """Every pool that some probe asks for, once."""
    return tuple(sorted({name for probe in probes for name in getattr(probe, "pools", ())}))


def section(recipe: Recipe) -> Evaluate:
    """The section `evaluate`; raises RunError where there is none."""
    if recipe.evaluate is None:
        raise RunError("the recipe has no section evaluate: it names train and test data, a view and probes")
    return recipe.evaluate


def bench(
    recipe: Recipe,
    installed: Catalogue,
    only: Sequence[str] = (),
    *,
    device: torch.device = CPU,
    folder: Path | None = None,
    say: Say = lambda _: None,
) -> Bench:
    """Opens what the section `evaluate` names; `only` some of its probes.

    Encoders are read in the recipe's precision. Where that is auto, it is what the run in `folder` trained in, not what
    `device` would choose by itself; `say` is told.

    Raises:
        RunError: the recipe has no such section.
        RecipeError: all that does not fit: keys that a part refused, data without labels, tasks or classes that differ.
    """
    settings = section(recipe)
    problems: list[Problem] = []
    one = partial(attempt, problems, installed)
    train: Any = one("datasets", settings.train, "evaluate.train")
    test: Any = one("datasets", settings.test, "evaluate.test")
    view = one("views", settings.view, "evaluate.view")
    augment = None if settings.augment is None else one("views", settings.augment, "evaluate.augment")
    probes = {
        name: one("probes", spec, f"evaluate.probes.{name}")
        for name, spec in settings.probes.items()
        if not only or name in only
    }
    remarks: list[str] = []
    if train is not None and test is not None:
        test = matched(train, test, problems, remarks)
    if problems or train is None or test is None:
        raise recipe.text.error(problems)
    run = settled(recipe, World(device=device), folder, say).run
    return Bench(settings, train, test, view, augment, probes, run.precision == "bf16", run.workers, tuple(remarks))


def matched(train: Dataset, test: Dataset, problems: list[Problem], remarks: list[str]) -> Dataset:
    """The test set with its classes numbered as the training set's, by their names where both tell them.

    A task or a class that only the test set has is a problem: no answer could be right. One that only the training set
    has is a remark.
    """
    for name, data in (("train", train), ("test", test)):
        if not len(data) or not data.tasks:
            lacks = "labels to probe: it names no tasks" if len(data) else "images"
            problems.append(Problem(f"evaluate.{name}", f"this data set has no {lacks}"))
            return test
    if set(train.tasks) != set(test.tasks):
        differ = f"its tasks are {_listed(test.tasks)}; those of evaluate.train are {_listed(train.tasks)}"
        problems.append(Problem("evaluate.test", differ))
        return test
    tables = {}
    for task, classes in train.tasks.items():
        ours, theirs = (_names(data, task) for data in (train, test))
        alone = [name for name in theirs if name not in ours]
        if ours and theirs and alone:
            text = (
                f"{len(alone)} of its {len(theirs)} classes of the task {task} are not in evaluate.train, so no answer "
            )
            problems.append(Problem("evaluate.test", text + f"could be right: {_listed(alone)}"))
        elif ours and theirs:
            tables[task] = [ours.index(name) for name in theirs]
            if missing := [name for name in ours if name not in theirs]:
                text = f"{len(missing)} of {classes} classes of the task {task} are in evaluate.train only: "
                remarks.append(text + _listed(missing))
        elif test.tasks[task] > classes:
            text = f"it has {test.tasks[task]} classes of the task {task}, evaluate.train has {classes}"
            problems.append(Problem("evaluate.test", text + "; the key classes of a data set says how many there are"))
        elif test.tasks[task] < classes:
            remarks.append(f"evaluate.test has {test.tasks[task]} classes of the task {task}, evaluate.train {classes}")
    if all(table == list(range(len(table))) for table in tables.values()) and train.tasks == test.tasks:
        return test
    return _Renumbered(test, train.tasks, tables)


class _Renumbered:
    """A data set whose classes bear the numbers of another's."""

    def __init__(self, data: Dataset, tasks: Mapping[str, int], tables: Mapping[str, Sequence[int]]) -> None:
        self.data, self.tables = data, tables
        self.tasks: Mapping[str, int] = tasks
        self.fingerprint, self.decoder = getattr(data, "fingerprint", ""), getattr(data, "decoder", None)

    def __len__(self) -> int:
        return len(self.data)

    def image(self, i: int) -> object:
        """Image i."""
        return self.data.image(i)

    def label(self, i: int) -> Mapping[str, int]:
        """The classes of image i."""
        return {task: self.tables[task][n] if task in self.tables else n for task, n in self.data.label(i).items()}


def _names(data: Dataset, task: str) -> list[str]:
    names = list(getattr(data, "class_names", {}).get(task, ()))
    return names if len(set(names)) == len(names) else []  # two classes of ImageNet are called crane


def _listed(names: Any, most: int = 8) -> str:
    names = list(map(str, names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def restored(
    recipe: Recipe, installed: Catalogue, folder: Path, step: int | None = None, say: Say = lambda _: None
) -> tuple[Method, int]:
    """The method of a run as of its newest whole checkpoint, or of a step; and the steps it was trained.

    `say` is told which checkpoint it is, and which newer ones are damaged. The training data are not opened.

    Raises:
        RunError: there is no such checkpoint.
    """
    there = Folder(folder).checkpoints
    if step is not None and step not in checkpoint.steps(there):
        raise RunError(f"{folder} has no checkpoint of step {step}; there is: {checkpoint.steps(there) or 'none'}")
    warn = lambda text: say(f"warning: {text}")  # noqa: E731 - one word for one use
    saved = checkpoint.newest(there, warn) if step is None else checkpoint.read(checkpoint.path_of(there, step))
    if saved is None:
        raise RunError(f"{folder} has no checkpoint yet")
    method = untrained(recipe, installed)
    checkpoint.restore_parts(saved, method)
    say(f"the encoder of {saved.path.name}")
    return method, saved.step


def untrained(recipe: Recipe, installed: Catalogue) -> Method:
    """The same method as it started; the training data are not opened."""
    return build_method(recipe, installed)
