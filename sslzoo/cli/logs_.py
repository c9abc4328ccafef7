"""`sslzoo logs`: what a run printed."""

from __future__ import annotations

import time
from pathlib import Path

import click


@click.command("logs")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@click.option("--rank", default=0, type=click.IntRange(0), help="What this process printed.")
def command(run: Path, follow: bool, rank: int) -> None:
    """What the run RUN printed; after a failure, the first error of any process comes last.

    \b
    Examples:
      sslzoo logs runs/ijepa-tiny
      sslzoo logs runs/ijepa-tiny -f --rank 3
    """
    from sslzoo.errors import UserError
    from sslzoo.launch.follow import folders, log_files
    from sslzoo.run.state import State

    found = folders(run)
    if len(found) > 1:
        raise UserError(f"{run} holds {len(found)} runs, the first of them {found[0]}; name one")
    (run,) = found
    files = log_files(run)
    if rank >= len(files):
        raise UserError(f"--rank {rank}: {run} has logs of {len(files)} processes, 0 to {len(files) - 1}")
    with files[rank].open(errors="replace") as file:
        while True:
            text = file.read()
            click.echo(text, nl=False)
            if not follow:
                break
            time.sleep(0.5)
    failure = State(run).failure
    if failure and failure.strip() not in files[rank].read_text(errors="replace"):
        click.echo(f"\nfirst error of any process:\n{failure}")
