"""How are the cells of a study probed? All by one section `evaluate`, teacher and student alike, and none twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from rich.console import Console

from sslzoo.compare import cells
from sslzoo.compare.study import Study
from sslzoo.errors import UserError
from sslzoo.evaluate import written
from sslzoo.evaluate.bench import Bench, Say, bench, restored, untrained
from sslzoo.evaluate.figures import probe
from sslzoo.evaluate.rehearse import rehearse
from sslzoo.plugins import Catalogue
from sslzoo.recipe.build import build_method
from sslzoo.recipe.precision import settled
from sslzoo.recipe.recipe import Recipe
from sslzoo.run.networks import encoders, of_kind
from sslzoo.run.processes import World, join
from sslzoo.run.state import State
from sslzoo.step import Method


def refuse_unfit(study: Study, *, data: bool = True) -> None:
    """Before anything runs: tries the evaluation of every variant, as `rehearse` does; its data once.

    Raises:
        UserError: a variant has none, or it does not fit; names the variant.
    """
    opened: list[object] = []
    for cell in study.cells:
        if cell.seed != study.seeds[0]:
            continue
        try:
            if cell.recipe.evaluate is None:
                raise UserError(
                    "a study needs a section evaluate, in the base recipe or in the study: data, a view, probes"
                )
            with torch.device("meta"):  # its networks are listed, and hold no numbers
                method = build_method(cell.recipe, cell.installed)
            wanted = study.keys.networks
            if not of_kind(method, wanted):
                there = ", ".join(encoders(method))
                raise UserError(f"the study asks for networks: {wanted}, and it has none; it has: {there}")
            for remark in rehearse(cell.recipe, cell.installed, data=data and cell.recipe.evaluate not in opened):
                click.echo(f"note: {remark}", err=True)
        except UserError as error:
            raise UserError(f"the variant {cell.variant} cannot be evaluated: {error}") from error
        opened.append(cell.recipe.evaluate)


@dataclass
class Opened:
    """Evaluations that were opened: their data sets are opened once for all cells."""

    known: dict[str, Bench] = field(default_factory=dict)

    def of(self, recipe: Recipe, installed: Catalogue, device: torch.device, folder: Path) -> Bench:
        """The one of a recipe. Raises UserError where its data do not fit."""
        settings = f"{recipe.run.precision} {recipe.evaluate}"
        if settings not in self.known:
            self.known[settings] = bench(recipe, installed, device=device, folder=folder)
        return self.known[settings]


def evaluate(study: Study, console: Console) -> list[str]:
    """Probes every finished cell that has no figures of its last step by these settings; returns which could not be.

    A cell was probed by the process that trained it, unless that was cut short, or the study asks for more since.
    """
    opened, failed = Opened(), []
    for cell in study.cells:
        if not cells.is_done(cell):
            continue
        name = f"{cell.variant}, seed {cell.seed}"

        def say(text: str, name: str = name) -> None:
            console.print(f"probing {name}: {text}", markup=False, highlight=False)

        given = cell.recipe, cell.installed, cell.folder, study.keys.networks, study.features
        try:
            of_cell(opened, *given, say)
        except UserError as error:
            failed.append(f"{name}, could not be probed: {error}")
    return failed


def of_cell(
    opened: Opened,
    recipe: Recipe,
    installed: Catalogue,
    folder: Path,
    networks: str,
    features: Path,
    say: Say,
) -> None:
    """Probes the `networks` of a finished run that have no figures of its last step by its recipe's settings.

    Raises:
        UserError: data, checkpoint or a network do not fit.
    """
    device = join(recipe.run.device, 1).device
    recipe = settled(recipe, World(device=device), folder)
    ready, start = opened.of(recipe, installed, device, folder), untrained(recipe, installed)
    conditions = ready.conditions(recipe, installed)
    found = written.read(folder, recipe.name, recipe.run.seed)[0]
    last = State(folder).now.get("step")
    known = {one.network for one in found if one.step == last and one.holds(conditions) and "untrained" in one.columns}
    missing = [name for name in of_kind(start, networks) if name not in known]
    if not missing:
        return
    method, step = restored(recipe, installed, folder, say=_to_log)
    if step != last:
        raise UserError(f"its last checkpoint, of step {last}, cannot be read (that of step {step} can)")
    methods: Mapping[str, Method] = {"trained": method, "untrained": start}
    for name in missing:
        say(name)
        probe(ready, recipe, installed, methods, step, name, folder, device, _to_log, features)


def _to_log(text: str) -> None:
    if text.startswith(("warning", "note")):
        click.echo(text, err=True)
