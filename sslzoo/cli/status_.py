"""`sslzoo status`: how far runs are, and why they ended."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import as_json as json_option


@click.command("status")
@click.argument("place", type=click.Path(path_type=Path), default=Path("runs"))
@json_option
def command(place: Path, as_json: bool) -> None:
    """State, node, step, rate, time left, restarts and last figures of the run PLACE, or of every run below it.

    \b
    Examples:
      sslzoo status
      sslzoo status runs/ijepa-tiny
      sslzoo status runs --json
    """
    from rich.console import Console
    from rich.table import Table

    from sslzoo.cli import echo_json
    from sslzoo.launch.follow import folders, rows

    found = rows(folders(place))
    if as_json:
        echo_json([row.json() for row in found])
        return
    table = Table(box=None, header_style="bold")
    for name in ("run", "state", "job", "nodes", "step", "images/s", "left", "restarts", "repeated", "loss", "RankMe"):
        table.add_column(name, justify="left" if name in ("run", "state", "job", "nodes") else "right")
    for row in found:
        step = "" if row.step is None else f"{row.step}/{row.steps}"
        numbers = [_number(row.rate, ",.0f"), _time(row.left), str(row.restarts), str(row.repeated)]
        numbers += [_number(row.loss, ".4f"), _number(row.rankme, ".1f")]
        table.add_row(row.run, row.state, row.job, row.nodes, step, *numbers)
    Console().print(table)
    for row in found:
        if row.reason:
            click.echo(f"{row.run}: {row.reason}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
