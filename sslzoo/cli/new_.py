"""`sslzoo new`: begin a plugin."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new")
@click.argument("kind", metavar="KIND")
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder to write into.")
@click.option("--file", "lone", is_flag=True, help="A lone file instead of a package.")
def command(kind: str, name: str, into: Path, lone: bool) -> None:
    """Write a working plugin, to be changed: a package, or with --file a lone file.

    KIND: dataset, view, mask, encoder, predictor, target, loss, optimizer or probe. The package has one module, its
    entry point, a test of one line that checks the contract, a recipe that uses it, and a README.

    \b
    Examples:
      sslzoo new mask stripes
      sslzoo new predictor my-guess --into plugins-of-mine
      sslzoo new loss log-cosh --file
    """
    from sslzoo.plugins import catalogue
    from sslzoo.scaffold import KINDS, write

    written = write(kind, name, into, lone=lone, installed=catalogue())
    for path in written:
        click.echo(path)
    if lone:
        click.echo(f"\nnext:  sslzoo verify {KINDS[kind]} {name} --plugin {written[0]}")
    else:
        top = written[0].parent
        click.echo(f"\nnext:  pip install -e {top} pytest && sslzoo verify {KINDS[kind]} {name} && pytest {top}")
