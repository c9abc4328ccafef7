"""Where do images come from? Folders, packed files, torchvision's sets, and scenes rendered when asked for."""

from __future__ import annotations

import click

from sslzoo import hookimpl
from sslzoo_datasets.clevr import Clevr
from sslzoo_datasets.folder import Folder
from sslzoo_datasets.packed import Parquet, Shards
from sslzoo_datasets.scenes import Scenes
from sslzoo_datasets.torchvision_named import Torchvision


@hookimpl
def sslzoo_datasets() -> dict[str, type]:
    """The data sets `folder`, `torchvision`, `shards`, `parquet`, `clevr` and `scenes`."""
    found = {"folder": Folder, "torchvision": Torchvision, "shards": Shards, "parquet": Parquet}
    return found | {"clevr": Clevr, "scenes": Scenes}


@hookimpl
def sslzoo_commands(cli: click.Group) -> None:
    """The commands `sslzoo index` and `sslzoo data`."""
    from sslzoo_datasets import command, index

    cli.add_command(index.command)
    cli.add_command(command.command)
