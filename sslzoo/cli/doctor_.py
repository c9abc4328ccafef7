"""`sslzoo doctor`: is a run healthy?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sslzoo.cli.options import json_option


@click.command("doctor")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Say whether the run FOLDER, or every run below it, is healthy: a verdict, its evidence, and what to try.

    Exit code 1 if any is not.

    \b
    Examples:
      sslzoo doctor runs/ijepa-tiny
      sslzoo doctor runs --json
    """
    from sslzoo.cli import echo_json
    from sslzoo.errors import RunError
    from sslzoo.launch.follow import folders
    from sslzoo.report.doctor import diagnose
    from sslzoo.report.records import own

    runs, found, unread = folders(folder), {}, 0
    for run in runs:
        try:
            record = own(run)
        except RunError as error:
            if len(runs) == 1:
                raise
            click.echo(str(error), err=True)
            unread += 1
            continue
        for fault in record.faults:
            click.echo(f"warning: {fault}", err=True)
        found[str(run)] = diagnose(record)
    if as_json:
        rows = {name: {"verdict": one.verdict, "evidence": one.evidence} for name, one in found.items()}
        echo_json({name: row | {"remedies": found[name].remedies} for name, row in rows.items()})
    else:
        for name, one in found.items():
            click.echo(f"{name}: {one.verdict}")
            for line in one.evidence:
                click.echo(f"  {line}")
            for line in one.remedies:
                click.echo(f"  try: {line}")
    if unread or any(one.verdict != "healthy" for one in found.values()):
        sys.exit(1)
