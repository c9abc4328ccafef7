"""Which options do many commands share?"""

from __future__ import annotations

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


as_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")
