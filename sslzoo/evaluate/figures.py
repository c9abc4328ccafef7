"""Where do figures lie, and how are they shown? With all that they depend on, one file an evaluation."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sslzoo import files
from sslzoo.evaluate.bench import Bench, Figures, Say, bench, untrained
from sslzoo.evaluate.kept import Kept
from sslzoo.plugins import Catalogue
from sslzoo.recipe.recipe import Recipe, versions
from sslzoo.run.monitor import evaluated_encoder, network_of
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
    for remark in opened.remarks:
        say(f"note: {remark}")
    figures, answers, name = {}, {}, ""
    conditions = opened.conditions(recipe, installed) | {"versions": versions(recipe, installed)}
    of_probes = ("probes", "seed", "remarks")
    depends = {key: value for key, value in conditions.items() if key not in of_probes} | {"encoder": recipe.encoder}
    kept = Kept(features or folder / "eval" / "features", depends)
    for column, method in encoders.items():
        name = network_of(method, network)
        say(f"probing the {column} encoder ({name})")
        figures[column], right = opened.probe(evaluated_encoder(method, name).to(device), device, kept)
        answers |= {f"{column}/{key}": value for key, value in right.items()}
    figures["chance"] = opened.chance()
    about = {"run": recipe.name, "step": step, "network": name, "run_seed": recipe.run.seed}
    path = write(folder, figures, about | conditions)
    save_file(answers, path.with_suffix(".safetensors"))
    return figures, path


def finish(
    recipe: Recipe,
    installed: Catalogue,
    method: Method,
    step: int,
    folder: Path,
    device: torch.device,
    say: Say,
) -> dict[str, Figures]:
    """At the end of a run: figures of the trained encoder beside the same encoder untrained."""
    opened = bench(recipe, installed, device=device, folder=folder)
    encoders = {"trained": method, "untrained": untrained(recipe, installed)}
    return probe(opened, recipe, installed, encoders, step, opened.settings.network, folder, device, say)[0]


def write(folder: Path, figures: Mapping[str, Figures], about: Mapping[str, Any]) -> Path:
    """Writes figures with what they depend on to eval/STEP-NETWORK-HASH.json of a run folder.

    The hash is of all that they depend on and of the columns: an evaluation with other settings gets another file, one
    with the same again the same file.
    """
    content = json.dumps([about, list(figures)], sort_keys=True, default=str)
    short = hashlib.sha256(content.encode()).hexdigest()[:8]
    network = re.sub(r"[^\w.-]", "_", str(about["network"]))
    path = folder / "eval" / f"{about['step']}-{network}-{short}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.unwritten(path, error) from error
    clean = {
        column: {name: value if math.isfinite(value) else None for name, value in found.items()}
        for column, found in figures.items()
    }
    files.write_whole(path, json.dumps({"figures": clean, **about}, indent=2, default=str))
    return path


def latest(folder: Path, step: int) -> dict[str, Figures]:
    """Figures of a run folder at a step: of the newest evaluation that has an untrained encoder too, else the newest.

    Evaluations that cannot be read are passed over; no evaluation of this step gives no figures.
    """
    found: dict[str, Figures] = {}
    for path in sorted((folder / "eval").glob(f"{step}-*.json"), key=lambda path: path.stat().st_mtime):
        try:
            columns = json.loads(path.read_text())["figures"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if "untrained" in columns or "untrained" not in found:
            nan = float("nan")
            found = {name: {k: nan if v is None else v for k, v in own.items()} for name, own in columns.items()}
    return found


def main_figures(figures: Mapping[str, Figures]) -> list[tuple[str, list[float]]]:
    """Rows for people: "probe/task", and the top1 of each column that has it; chance is by task alone."""
    names = [name for name in next(iter(figures.values())) if name.endswith("/top1")]
    rows = []
    for name in names:
        _, task, _ = name.split("/")
        values = [column.get(name, column.get(task, float("nan"))) for column in figures.values()]
        rows.append((name.removesuffix("/top1"), values))
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
