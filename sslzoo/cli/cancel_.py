"""`sslzoo cancel`: end a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("cancel")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def command(folder: Path) -> None:
    """End the run FOLDER, or every run below it, on SLURM or on this machine. What it saved stays.

    \b
    Examples:
      sslzoo cancel runs/ijepa-tiny
    """
    from sslzoo.errors import UserError
    from sslzoo.launch.follow import cancel, folders

    found = folders(folder)
    for run in found:
        try:
            click.echo(cancel(run))
        except UserError as error:
            if len(found) == 1:
                raise
            click.echo(str(error))
