"""`sslzoo status`: how far runs are, and why they ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sslzoo.cli.options import json_option

if TYPE_CHECKING:
    from sslzoo.launch.follow import Row

COLUMNS = ("run", "state", "job", "nodes", "step", "images/s", "left", "restarts", "repeated", "loss", "RankMe")
LEFT = ("run", "state", "job", "nodes")
LESS = ("repeated", "nodes", "RankMe", "restarts", "images/s", "job")  # left out first where there is no room
GAP = "  "


@click.command("status")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@json_option
def command(folder: Path, as_json: bool) -> None:
    """State, node, step, rate, time left, restarts and last figures of the run FOLDER, or of every run below it.

    \b
    Examples:
      sslzoo status
      sslzoo status runs/ijepa-tiny
      sslzoo status runs --json
    """
    from shutil import get_terminal_size

    from sslzoo.cli import echo_folded, echo_json
    from sslzoo.errors import printable
    from sslzoo.launch.follow import folders, rows

    found = rows(folders(folder))
    if as_json:
        echo_json([row.json() for row in found])
        return
    click.echo(printable(table(found, folder, get_terminal_size().columns)))
    for row in found:
        if row.reason:
            echo_folded(printable(f"{row.run}: {row.reason}"))


def table(found: Sequence[Row], folder: Path, width: int) -> str:
    """A line for each run, no wider than asked: what matters less is left out, and paths lose their beginnings."""
    cells = [_cells(row, folder) for row in found]
    columns = list(COLUMNS)
    for less in LESS:
        if _width(cells, columns) > width:
            columns.remove(less)
    longest = max(8, width - _width(cells, [name for name in columns if name != "run"]) - len(GAP))
    for row in cells:
        row["run"] = row["run"] if len(row["run"]) <= longest else "\u2026" + row["run"][1 - longest :]
    wide = {name: max(len(name), *(len(row[name]) for row in cells)) for name in columns}
    lines = [{name: name for name in columns}, *cells]
    return "\n".join(
        GAP.join(line[name].ljust(wide[name]) if name in LEFT else line[name].rjust(wide[name]) for name in columns)
        for line in lines
    )


def _cells(row: Row, folder: Path) -> dict[str, str]:
    from sslzoo.run.clock import hours

    path = Path(row.run)
    return {
        "run": str(path.relative_to(folder)) if path.is_relative_to(folder) and path != folder else row.run,
        "state": row.state,
        "job": row.job,
        "nodes": row.nodes,
        "step": "" if row.step is None else f"{row.step}/{row.steps}",
        "images/s": _number(row.rate, ",.0f"),
        "left": "" if row.left is None else hours(row.left),
        "restarts": str(row.restarts),
        "repeated": str(row.repeated),
        "loss": _number(row.loss, ".4f"),
        "RankMe": _number(row.rankme, ".1f"),
    }


def _width(cells: Sequence[dict[str, str]], columns: Sequence[str]) -> int:
    return sum(max(len(name), *(len(row[name]) for row in cells)) + len(GAP) for name in columns) - len(GAP)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
