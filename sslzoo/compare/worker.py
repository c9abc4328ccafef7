"""What does a process of a study do? It trains one cell, then probes it: `python -m sslzoo.compare.worker`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sslzoo.compare import evaluation
from sslzoo.errors import UserError
from sslzoo.launch.work import work
from sslzoo.recipe.recipe import load
from sslzoo.run.stop import Stop, Stopped


def cell(folder: Path, networks: str, features: Path) -> None:
    """Trains the run in `folder` to its end, and probes its `networks`; features of many runs lie in `features`.

    Raises:
        Stopped: it was asked to stop; what was done is saved.
        UserError: it cannot be trained, or not be probed: then its state is `done`, and another may try.
    """
    stop = Stop()
    stop.listen()
    recipe, installed = load(str(folder))
    work(recipe, installed, folder, stop, evaluate=False)
    stop.patient = False  # nothing is lost when probing is cut short
    if stop.asked:
        raise Stopped(f"stopped by {stop.asked}")
    evaluation.of_cell(evaluation.Opened(), recipe, installed, folder, networks, features, click.echo)


def main() -> None:
    """Reads the command line; a person's mistakes end with a message and exit code, as those of `sslzoo` do."""
    folder, networks, features = sys.argv[1:]
    try:
        cell(Path(folder), networks, Path(features))
    except (UserError, Stopped) as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
