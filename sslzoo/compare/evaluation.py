"""How are the cells of a study probed? All by one section `evaluate`, teacher and student alike, and none twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click
import torch
from rich.console import Console

from sslzoo.compare import cells, records
from sslzoo.compare.study import Cell, Study
from sslzoo.evaluate.bench import Bench, bench, restored, untrained
from sslzoo.evaluate.figures import probe
from sslzoo.recipe.precision import settled
from sslzoo.run.parallel import World, join
from sslzoo.step import Method


def evaluate(study: Study, console: Console) -> None:
    """Probes every finished cell that has no figures of its last step by these settings.

    Raises:
        UserError: the evaluation's data, view or probes do not fit.
    """
    opened: dict[str, Bench] = {}
    for cell in study.cells:
        if not cells.is_done(cell):
            continue
        device = join(None if cell.recipe.run.device == "auto" else cell.recipe.run.device).device
        cell = replace(cell, recipe=settled(cell.recipe, World(device=device), cell.folder))
        settings = f"{cell.recipe.run.precision} {cell.recipe.evaluate}"
        if settings not in opened:
            opened[settings] = bench(cell.recipe, cell.installed)
        _cell(cell, opened[settings], study, device, console)


def _cell(cell: Cell, opened: Bench, study: Study, device: torch.device, console: Console) -> None:
    wanted, shared = study.keys.networks, study.folder / "features"
    told = opened.told(cell.recipe, cell.installed)
    known = {one.network for one in records.evaluations(cell.folder) if one.holds(told)}
    method, step = restored(cell.recipe, cell.installed, cell.folder)
    for network, kind in networks(method).items():
        if network in known or (wanted != "all" and kind != wanted):
            continue
        console.print(f"probing {cell.variant}, seed {cell.seed}: {network}", markup=False, highlight=False)
        methods: Mapping[str, Method] = {"trained": method, "untrained": untrained(cell.recipe, cell.installed)}
        probe(opened, cell.recipe, cell.installed, methods, step, network, cell.folder, device, _to_log, shared)


def networks(method: Method) -> dict[str, str]:
    """Every network that can be evaluated, and its kind: teacher (of a target generator) or student."""
    owners: dict[str, Any] = dict(method.targets.items())
    return {name: "teacher" for name, one in owners.items() if hasattr(one, "encoder")} | {"student": "student"}


def _to_log(text: str) -> None:
    if text.startswith(("warning", "note")):
        click.echo(text, err=True)
