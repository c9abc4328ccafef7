"""`sslzoo data`: make data ready for a long run."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("data")
def command() -> None:
    """Make data ready for a long run."""


@command.command("pack", short_help="Tar shards of resized images.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--side", type=click.IntRange(1), default=256, show_default=True, help="Shorter side, in pixels.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Of the JPEG files.")
@click.option("--shard", type=click.IntRange(1), default=1000, show_default=True, help="Images in a shard.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes; as many as there are cores.")
def pack(source: Path, out: Path, side: int, quality: int, shard: int, workers: int | None) -> None:
    """Pack images, resized to a shorter side, into the tar shards of the folder OUT; the same command goes on.

    SOURCE is a folder of images, or a pattern of tar or parquet files. Smaller images are left as they are; damaged
    ones are left out, counted and listed in OUT/pack.jsonl.

    \b
    Examples:
      sslzoo data pack /data/imagenet/train /data/in1k-256
      sslzoo data pack '/data/train-*.parquet' /data/packed --side 320
    """
    import os

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sslzoo_datasets import pack as packing

    data, settings = packing.opened(source), packing.Settings(side, quality, shard)
    known = packing.begin(out, data, settings)
    if known:
        click.echo(f"goes on: {len(known):,} shards are there")
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    rows = []
    with Progress(*columns) as bar:
        task = bar.add_task("", total=len(data), rate="")
        for row in packing.pack(data, out, settings, known, workers or len(os.sched_getaffinity(0))):
            rows.append(row)
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f} images a second" if speed else ""
            bar.update(task, advance=row["images"] + len(row["damaged"]), rate=rate)
    damaged = [one for row in sorted(rows, key=lambda row: row["shard"]) for one in row["damaged"]]
    images, size = (sum(row[key] for row in rows) for key in ("images", "bytes"))
    click.echo(f"{images:,} images in {len(rows):,} shards, {size / 1e9:.2f} GB")
    for one in damaged[:3]:
        click.echo(f"  image {one['image']} left out: {one['error']}")
    if damaged:
        click.echo(f"{len(damaged):,} damaged, listed in {out / 'pack.jsonl'}")
    click.echo(f'read them with  data: {{use: shards, files: "{out / "*.tar"}"}}')
