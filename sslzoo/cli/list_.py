"""`sslzoo list`: parts of one family, or recipes."""

from __future__ import annotations

from pathlib import Path

import click

from sslzoo.cli.options import as_json as json_option


@click.command("list")
@click.argument("what", required=False)
@json_option
def command(what: str | None, as_json: bool) -> None:
    """Parts of one family with the first line of their docstring, or recipes; everything if WHAT is left out.

    WHAT: datasets, views, masks, encoders, predictors, targets, losses, probes or recipes.

    \b
    Examples:
      sslzoo list masks
      sslzoo list recipes
      sslzoo list predictors --json
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sslzoo.cli import echo_json
    from sslzoo.errors import UserError, did_you_mean
    from sslzoo.plugins import FAMILIES, catalogue
    from sslzoo.recipe.recipe import names

    known = (*FAMILIES, "recipes")
    if what is not None and what not in known:
        raise UserError(f"nothing is called {what!r}{did_you_mean(what, known)}\naccepted: {', '.join(known)}")
    installed = catalogue()
    found: dict[str, dict[str, str]] = {
        family: {name: part.summary for name, part in installed.parts[family].items()}
        for family in FAMILIES
        if what in (None, family)
    }
    if what in (None, "recipes"):
        found["recipes"] = {name: _first_line(path) for name, path in names(installed).items()}
    if as_json:
        echo_json(found)
        return
    for family, parts in found.items():
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(family, no_wrap=True)
        table.add_column("", overflow="fold")
        for name, summary in sorted(parts.items()):
            table.add_row(escape(name), escape(summary))  # brackets are the author's own, not markup
        Console().print(table, "")


def _first_line(path: Path) -> str:
    """What a recipe is; the source of the method, which many share, is left to the file itself."""
    line = path.read_text(errors="replace").split("\n", 1)[0].removeprefix("#").strip()
    return line.split("   ", 1)[0]
