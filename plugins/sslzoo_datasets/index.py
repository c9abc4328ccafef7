"""`sslzoo index`: look through an image folder before a long run does."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("index")
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--read", is_flag=True, help="Decode every image and list those that cannot be read.")
def command(root: Path, read: bool) -> None:
    """Write the cached index of an image folder, and say what is in it.

    \b
    Examples:
      sslzoo index /data/imagenet/train
      sslzoo index /data/imagenet/train --read
    """
    from sslzoo.errors import UserError
    from sslzoo_datasets.folder import Folder

    try:
        folder = Folder(root=root)
    except ValueError as error:
        raise UserError(str(error)) from error
    click.echo(f"{len(folder):,} images, {len(folder.classes) or 'no'} classes in {root}")
    if not read:
        return
    broken = 0
    with click.progressbar(range(len(folder)), label="reading") as numbers:
        for i in numbers:
            try:
                folder.image(i).load()
            except OSError as error:
                broken += 1
                click.echo(f"\n{folder.index.files[i]}: {error}")
    click.echo(f"{broken:,} cannot be read")
