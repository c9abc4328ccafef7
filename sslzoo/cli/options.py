"""Which options do many commands share?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def recipe_options(function: Command) -> Command:
    """`--set` and `--plugin`: everything that changes a recipe from the command line."""
    plugin = click.option(
        "--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="Also load this plugin file."
    )
    sets = click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change the recipe; VALUE may be YAML."
    )
    return sets(plugin(function))


changed_data = click.option(
    "--allow-changed-data",
    "changed_data",
    is_flag=True,
    help="Resume even if the training data are others than before.",
)


def allow_changed_data(run: Path, changed_data: bool) -> None:
    """Does what `--allow-changed-data` says, before a run goes on; the first of several processes does it."""
    from sslzoo.run.folder import Folder

    if changed_data and os.environ.get("RANK", "0") == "0":
        Folder(run).forget_data()


as_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")
