"""How are the cells of a study probed? All by one section `evaluate`, teacher and student alike, and none twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import click
import torch
from rich.console import Console

from sslzoo.compare import cells
from sslzoo.compare.study import Cell, Study
from sslzoo.errors import UserError
from sslzoo.evaluate import written
from sslzoo.evaluate.bench import Bench, bench, restored, untrained
from sslzoo.evaluate.figures import probe
from sslzoo.evaluate.rehearse import rehearse
from sslzoo.recipe.build import build_method
from sslzoo.recipe.precision import settled
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


def evaluate(study: Study, console: Console) -> list[str]:
    """Probes every finished cell that has no figures of its last step by these settings; returns which could not be.

    Raises:
        UserError: the evaluation's data do not fit.
    """
    opened: dict[str, Bench] = {}
    failed = []
    for cell in study.cells:
        if not cells.is_done(cell):
            continue
        device = join(cell.recipe.run.device, 1).device
        cell = replace(cell, recipe=settled(cell.recipe, World(device=device), cell.folder))
        settings = f"{cell.recipe.run.precision} {cell.recipe.evaluate}"
        if settings not in opened:  # data sets are opened once for all cells
            opened[settings] = bench(cell.recipe, cell.installed, device=device, folder=cell.folder)
        try:
            _cell(cell, opened[settings], study, device, console)
        except UserError as error:
            failed.append(f"{cell.variant}, seed {cell.seed}, could not be probed: {error}")
    return failed


def _cell(cell: Cell, opened: Bench, study: Study, device: torch.device, console: Console) -> None:
    start = untrained(cell.recipe, cell.installed)
    conditions = opened.conditions(cell.recipe, cell.installed)
    found = written.read(cell.folder, cell.recipe.name, cell.recipe.run.seed)[0]
    last = State(cell.folder).now.get("step")
    known = {one.network for one in found if one.step == last and one.holds(conditions) and "untrained" in one.columns}
    missing = [name for name in of_kind(start, study.keys.networks) if name not in known]
    if not missing:
        return
    method, step = restored(cell.recipe, cell.installed, cell.folder, say=_to_log)
    if step != last:
        raise UserError(f"its last checkpoint, of step {last}, cannot be read (that of step {step} can)")
    methods: Mapping[str, Method] = {"trained": method, "untrained": start}
    for name in missing:
        console.print(f"probing {cell.variant}, seed {cell.seed}: {name}", markup=False, highlight=False)
        folder, shared = cell.folder, study.folder / "features"
        probe(opened, cell.recipe, cell.installed, methods, step, name, folder, device, _to_log, shared)


def _to_log(text: str) -> None:
    if text.startswith(("warning", "note")):
        click.echo(text, err=True)
