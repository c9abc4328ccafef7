"""`sslzoo list`: parts of one family, recipes, studies or cluster profiles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from sslzoo.cli.options import json_option

COLUMNS = ("method", "network", "data", "FLOPs")  # of recipes: one line each, at 80 columns


@click.command("list")
@click.argument("what", required=False)
@json_option
def command(what: str | None, as_json: bool) -> None:
    """Parts of one family, recipes, studies or cluster profiles; everything if WHAT is left out.

    WHAT is one of datasets, views, masks, encoders, predictors, targets, losses, optimizers, probes: parts by name,
    with what each does. Or recipes, with their network (ViT 96/8 is 96 wide, with patches of 8 pixels), their data and
    the operations that the whole run takes, counted (FLOPs; --json tells their length, too). Or studies, for
    `sslzoo compare`; or clusters, for `sslzoo submit --cluster`.

    \b
    Examples:
      sslzoo list masks
      sslzoo list recipes
      sslzoo list studies
      sslzoo list predictors --json
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sslzoo.cli import echo_json
    from sslzoo.errors import UserError, did_you_mean
    from sslzoo.launch import profile
    from sslzoo.plugins import FAMILIES, catalogue
    from sslzoo.recipe.recipe import names, studies

    known = (*FAMILIES, "recipes", "studies", "clusters")
    if what is not None and what not in known:
        raise UserError(f"nothing is called {what!r}{did_you_mean(what, known)}\naccepted: {', '.join(known)}")
    installed = catalogue()
    found: dict[str, dict[str, Any]] = {
        family: {name: part.summary for name, part in installed.parts[family].items()}
        for family in FAMILIES
        if what in (None, family)
    }
    if what in (None, "recipes"):
        found["recipes"] = {name: _facts(path) for name, path in names(installed).items()}
    for name, files in {"studies": studies, "clusters": profile.names}.items():
        if what in (None, name):
            found[name] = {one: _about(path.read_text(errors="replace")) for one, path in files(installed).items()}
    if as_json:
        echo_json(found)
        return
    for family, parts in found.items():
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1 if family == "recipes" else 2, 0, 0))
        table.add_column(family, no_wrap=True)
        for column in COLUMNS if family == "recipes" else ("",):
            table.add_column(column, overflow="fold", no_wrap=family == "recipes")
        for name, said in sorted(parts.items()):
            cells = [said[column] for column in COLUMNS] if family == "recipes" else [said]
            table.add_row(*map(escape, (name, *cells)))  # brackets are the author's own, not markup
        Console().print(table, "")


def _facts(path: Path) -> dict[str, str]:
    """A recipe in a line, from its text alone: what may be wrong in it is told by `check`."""
    text = path.read_text(errors="replace")
    lines, about = _comments(text), _about(text)
    cost = next((line.removeprefix("Cost:").strip() for line in lines if line.startswith("Cost:")), "")
    counted = re.match(r"(\S+) FLOPs, counted", cost)
    try:
        tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        tree = None
    tree = tree if isinstance(tree, dict) else {}
    sections = {name: tree[name] if isinstance(tree.get(name), dict) else {} for name in ("encoder", "data", "run")}
    method = re.split(r"'s |,| on | under | with | that ", about)[0].rstrip(".")
    seen = {"method": method, "network": _network(sections["encoder"]), "data": _data(sections["data"])}
    return seen | {
        "length": _length(sections["run"]),
        "FLOPs": counted[1] if counted else "",
        "about": about,
        "cost": cost,
    }


def _comments(text: str) -> list[str]:
    return [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]


def _about(text: str) -> str:
    """What a file's first line says; the source that may follow is left to the file itself."""
    return next(iter(_comments(text)), "").split("   ", 1)[0]


def _network(spec: Mapping[str, Any]) -> str:
    use, size, patch = str(spec.get("use", "")), str(spec.get("size", "")), spec.get("patch")
    if use.startswith("vit"):
        named = f"ViT-{'g' if size == 'giant' else size[0].upper()}" if size else f"ViT {spec.get('width', '')}"
        return f"{named}/{patch}" if patch else named
    widen = spec.get("widen", 1)
    return str(spec.get("model", use)).replace("resnet", "RN") + (f" x{widen}" if widen != 1 else "")


def _data(spec: Mapping[str, Any]) -> str:
    where = re.match(r"\$\{(\w+)\}", str(spec.get("root", spec.get("files", ""))))
    return where[1] if where else str(spec.get("name", spec.get("use", "")))


def _length(run: Mapping[str, Any]) -> str:
    steps = run.get("steps") or 0
    if "epochs" in run:
        return f"{run['epochs']} epochs"
    return f"{steps / 1000:g}k steps" if isinstance(steps, int) and steps > 9999 else f"{steps} steps"
