"""What are the figures of a run's encoders, and how are they shown?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from sslzoo import files
from sslzoo.errors import RunError
from sslzoo.evaluate.bench import Bench, Figures, Say, bench, untrained
from sslzoo.evaluate.features import summary_told
from sslzoo.evaluate.kept import Kept
from sslzoo.evaluate.written import Columns, overlap_told, write
from sslzoo.plugins import Catalogue
from sslzoo.recipe.recipe import Recipe, resolve, versions
from sslzoo.recipe.starting import pinned
from sslzoo.run.networks import evaluated_encoder, network_of, of_kind
from sslzoo.step import Method


def probe(
    opened: Bench,
    recipe: Recipe,
    installed: Catalogue,
    encoders: Mapping[str, Method],
    step: int,
    network: str,
    folder: Path,
    device: torch.device,
    say: Say,
    features: Path | None = None,
) -> tuple[dict[str, Figures], Path]:
    """Figures of one network of some methods by name, beside chance; written to eval/ of the run folder.

    Features are kept in the folder `features`, which runs may share; in eval/features of the run if left out.
    """
    files.refuse_unwritable(folder / "eval")
    for remark in opened.remarks:
        say(f"note: {remark}")
    figures, answers, name, overlap = {}, {}, "", 0
    conditions = opened.conditions(recipe, installed) | {"versions": versions(recipe, installed)}
    of_probes = ("probes", "seed", "remarks")
    depends = {key: value for key, value in conditions.items() if key not in of_probes}
    depends["encoder"] = yaml.safe_load(resolve(recipe, installed))["encoder"]  # as the run folder has it: all defaults
    depends["seen"] = opened.seen
    kept = Kept(features or folder / "eval" / "features", depends)
    for column, method in encoders.items():
        name = network_of(method, network)
        say(f"probing the {column} encoder ({name})")
        try:
            figures[column], right, overlap = opened.probe(evaluated_encoder(method, name).to(device), device, kept)
        except RunError as error:
            raise RunError(f"the {column} encoder ({name}) cannot be probed: {error}") from error
        answers |= {f"{column}/{key}": value for key, value in right.items()}
    figures["chance"] = opened.chance()
    about = {"run": recipe.name, "step": step, "network": name, "run_seed": recipe.run.seed}
    if (start := pinned(recipe, folder).start) is not None:
        about["start"] = start.model_dump(mode="json")
    if not opened.settings.layers and any(getattr(one, "reads_x", True) for one in opened.probes.values()):
        encoder = evaluated_encoder(next(iter(encoders.values())), name)
        about["summary"] = summary_told(encoder, opened.view.size, device)
    if overlap:
        about["overlap"] = overlap
        say(f"warning: {overlap_told(overlap, len(opened.test))}")
    return figures, write(folder, figures, about | conditions, answers)


def finish(
    recipe: Recipe,
    installed: Catalogue,
    method: Method,
    step: int,
    folder: Path,
    device: torch.device,
    say: Say,
    networks: str | None = None,
) -> dict[str, Figures]:
    """At the end of a run: figures of the trained encoder beside the same encoder untrained.

    `networks` is a kind, teacher, student or all: every network of it is probed, and the first one's figures are
    returned. If left out, the one that the recipe chooses.
    """
    opened = bench(recipe, installed, device=device, folder=folder)
    encoders = {"trained": method, "untrained": untrained(recipe, installed)}
    names = [opened.settings.network] if networks is None else of_kind(method, networks)
    found = [probe(opened, recipe, installed, encoders, step, name, folder, device, say)[0] for name in names]
    return found[0]


def main_figures(figures: Columns) -> list[tuple[str, list[float]]]:
    """Rows for people: "probe/task", and the top1 of each column that has it; chance is by task alone."""
    names = [name for name in next(iter(figures.values())) if name.endswith("/top1")]
    rows = []
    for name in names:
        _, task, _ = name.split("/")
        values = [column.get(name, column.get(task, float("nan"))) for column in figures.values()]
        rows.append((name.removesuffix("/top1"), values))
    return rows


def table(figures: Columns) -> Any:
    """A table of top-1 figures, a column an encoder."""
    from rich.table import Table

    shown = Table("top-1, percent", *figures, box=None, header_style="bold")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, values in main_figures(figures):
        shown.add_row(name, *(f"{value:.1f}" for value in values))
    return shown
