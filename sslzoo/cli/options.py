"""Which options do many commands share?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

Command = Callable[..., Any]


class Written(click.Path):
    """A file or folder to be written: refused before any work where that cannot be."""

    def __init__(self, *, folder: bool = False, endings: tuple[str, ...] = ()) -> None:
        super().__init__(path_type=Path, file_okay=not folder, dir_okay=folder)
        self.folder, self.endings = folder, endings

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Fails on an empty one, another ending, and where nothing can be written."""
        if not str(value):
            self.fail("found an empty path; is a variable of the shell unset?", param, ctx)
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if self.endings and path.suffix not in self.endings:
            self.fail(f"found '{path}'; a name that ends in {' or '.join(self.endings)} is wanted", param, ctx)
        home = path.parent
        if self.folder:  # made with all that leads to it
            home = next((one for one in (path, *path.parents) if one.exists()), home)
        if not home.is_dir():
            self.fail(f"'{path}' cannot be written: there is no folder '{home}'", param, ctx)
        if not os.access(home, os.W_OK | os.X_OK):
            self.fail(f"'{path}' cannot be written: the folder '{home}' may not be written to", param, ctx)
        try:
            TemporaryFile(dir=home).close()  # has no name where the file system can do that; /proc takes none at all
        except OSError as error:
            self.fail(f"'{path}' cannot be written: the folder '{home}' takes no files: {error.strerror}", param, ctx)
        return path


json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")

plugin_option = click.option(
    "--plugin", "plugins", multiple=True, type=click.Path(path_type=Path), help="Also load this plugin file."
)


def recipe_options(function: Command) -> Command:
    """`--set` and `--plugin`: everything that changes a recipe from the command line."""
    sets = click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change the recipe; VALUE may be YAML."
    )
    return sets(plugin_option(function))


changed_data_option = click.option(
    "--allow-changed-data",
    "changed_data",
    is_flag=True,
    help="Resume even if the training data are others than before.",
)


def allow_changed_data(run: Path, changed_data: bool) -> None:
    """Does what `--allow-changed-data` says, before a run goes on; the first of several processes does it."""
    from sslzoo.run.folder import Folder
    from sslzoo.run.processes import launched

    if changed_data and launched()[1] == 0:
        Folder(run).forget_data()
