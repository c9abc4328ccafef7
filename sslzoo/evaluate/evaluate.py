"""What has a frozen encoder learnt? Features of labelled images, and what probes read from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sslzoo.contracts import Dataset, Features, View
from sslzoo.errors import RunError
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import build, make
from sslzoo.recipe.recipe import Evaluate, Recipe
from sslzoo.rng import derive_seed
from sslzoo.run import checkpoint
from sslzoo.run.data import seed_views
from sslzoo.run.folder import Folder
from sslzoo.run.monitor import evaluated_encoder
from sslzoo.step import Method

Figures = dict[str, float]


class _Labelled(TorchDataset[tuple[Tensor, dict[str, int]]]):
    """Views of images with their labels, in order; an unreadable image is an error here, not a warning."""

    def __init__(self, data: Dataset, view: View) -> None:
        self.data, self.view = data, view

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, int]]:
        seed_views(derive_seed("evaluate", i))
        return self.view(self.data.image(i))[0], dict(self.data.label(i))


@torch.no_grad()
def extract(
    encoder: nn.Module,
    data: Dataset,
    view: View,
    *,
    device: torch.device,
    layers: int = 0,
    batch: int = 256,
    workers: int = 0,
    bf16: bool = False,
) -> Features:
    """Features of every image of a data set, in order, from an encoder in eval mode: x [n d].

    With `layers` 0 the encoder's own summary; else the means over patches of its last blocks, side by side
    [n layers*d].

    Raises:
        RunError: an image cannot be read, or the data set has no labels.
    """
    if not data.tasks:
        raise RunError("the data set has no labels to probe: it names no tasks")
    mode = encoder.training
    encoder.eval()
    loader = DataLoader(
        _Labelled(data, view), batch, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    rows, labels = [], {task: [] for task in data.tasks}
    try:
        for pixels, told in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                tokens = encoder(pixels.to(device), None, layers)
            x = torch.cat([layer.mean(1) for layer in tokens.layers], 1) if layers else tokens.summary
            rows.append(x.float().cpu())
            for task in labels:
                labels[task].append(told[task])
    except (OSError, SyntaxError) as error:
        raise RunError(f"an image to evaluate on cannot be read: {error}") from error
    finally:
        encoder.train(mode)
    return Features(torch.cat(rows), {task: torch.cat(found) for task, found in labels.items()}, dict(data.tasks))


@dataclass(frozen=True)
class Bench:
    """The data, view and probes of a recipe's section `evaluate`, ready for any number of encoders."""

    settings: Evaluate
    train: Dataset
    test: Dataset
    view: View
    probes: Mapping[str, Any]
    seed: int
    bf16: bool
    workers: int

    def probe(self, encoder: nn.Module, device: torch.device) -> Figures:
        """Figures of an encoder: "probe/task/figure"."""
        told = {"layers": self.settings.layers, "batch": self.settings.batch, "device": device}
        told |= {"workers": self.workers, "bf16": self.bf16}
        train, test = (extract(encoder, data, self.view, **told) for data in (self.train, self.test))
        return {
            f"{name}/{figure}": value
            for name, probe in self.probes.items()
            for figure, value in probe(train, test, self.seed).items()
        }

    def chance(self) -> Figures:
        """What always telling the commonest class of the test set scores: "task"."""
        found = {}
        for task, classes in self.test.tasks.items():
            labels = torch.tensor([self.test.label(i)[task] for i in range(len(self.test))])
            found[task] = labels.bincount(minlength=classes).max().item() / len(labels) * 100
        return found


def bench(recipe: Recipe, installed: Catalogue, only: tuple[str, ...] = ()) -> Bench:
    """Opens what the section `evaluate` names; `only` some of its probes.

    Raises:
        RunError: the recipe has no such section.
        RecipeError: a data set, view or probe refused its keys.
    """
    settings = recipe.evaluate
    if settings is None:
        raise RunError("the recipe has no section evaluate: it names train and test data, a view and probes")
    place = "evaluate."
    train, test = (
        make(installed, "datasets", spec, place=place + name)
        for name, spec in (("train", settings.train), ("test", settings.test))
    )
    view = make(installed, "views", settings.view, place="evaluate.view")
    probes = {
        name: make(installed, "probes", spec, place=f"evaluate.probes.{name}")
        for name, spec in settings.probes.items()
        if not only or name in only
    }
    run = recipe.run
    return Bench(settings, train, test, view, probes, run.seed, run.precision == "bf16", run.workers)


def restored(recipe: Recipe, installed: Catalogue, folder: Path, step: int | None = None) -> tuple[Method, int]:
    """The method of a run as of its newest checkpoint, or of a step; and the steps they were trained.

    Raises:
        RunError: there is no such checkpoint.
    """
    place = Folder(folder).checkpoints
    if step is not None and step not in checkpoint.steps(place):
        raise RunError(f"{folder} has no checkpoint of step {step}; there is: {checkpoint.steps(place) or 'none'}")
    saved = checkpoint.newest(place, _ignore) if step is None else checkpoint.read(checkpoint.place_of(place, step))
    if saved is None:
        raise RunError(f"{folder} has no checkpoint yet")
    method = build(recipe, installed)[0]
    checkpoint.restore_parts(saved, method)
    return method, saved.step


def untrained(recipe: Recipe, installed: Catalogue) -> Method:
    """The same method as it started."""
    return build(recipe, installed)[0]


def write(folder: Path, name: str, figures: Mapping[str, Figures], settings: Evaluate) -> Path:
    """Writes figures with their settings and versions to eval/NAME.json of a run folder."""
    from sslzoo.recipe.signature import plain

    place = folder / "eval" / f"{name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("sslzoo", "torch")}
    told = {"figures": figures, "settings": plain(settings), "versions": versions}
    place.write_text(json.dumps(told, indent=2))
    return place


def finish(
    recipe: Recipe, installed: Catalogue, method: Method, folder: Path, device: torch.device, say: Callable[[str], None]
) -> dict[str, Figures]:
    """At the end of a run: figures of the trained encoder beside the same encoder untrained."""
    opened = bench(recipe, installed)
    assert recipe.evaluate is not None
    network = recipe.evaluate.network
    encoders = {"trained": evaluated_encoder(method, network)}
    encoders["untrained"] = evaluated_encoder(untrained(recipe, installed), network).to(device)
    figures = {}
    for name, encoder in encoders.items():
        say(f"probing the {name} encoder")
        figures[name] = opened.probe(encoder, device)
    figures["chance"] = opened.chance()
    write(folder, "final", figures, recipe.evaluate)
    return figures


def main_figures(figures: Mapping[str, Figures]) -> list[tuple[str, list[float]]]:
    """Rows for people: "probe/task", and the top1 of each column that has it; chance is by task alone."""
    names = [name for name in next(iter(figures.values())) if name.endswith("/top1")]
    rows = []
    for name in names:
        probe, task, _ = name.split("/")
        rows.append(
            (f"{probe}/{task}", [column.get(name, column.get(task, float("nan"))) for column in figures.values()])
        )
    return rows


def table(figures: Mapping[str, Figures]) -> Any:
    """A table of top-1 figures, a column an encoder."""
    from rich.table import Table

    shown = Table("top-1, percent", *figures, box=None, header_style="bold")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, values in main_figures(figures):
        shown.add_row(name, *(f"{value:.1f}" for value in values))
    return shown


def _ignore(_text: str) -> None:
    """The newest readable checkpoint will do."""
