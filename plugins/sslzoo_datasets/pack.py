"""How do many image files become a few large ones that are read three times as fast? `sslzoo data pack`.

A shard is a function of its images and the settings alone, and it appears whole or not at all: a packing that was
killed goes on with the shards that are missing, and ends with the bytes of one that was not.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sslzoo import ImageError, Photo, UserError, files
from sslzoo_datasets.folder import Folder
from sslzoo_datasets.packed import CLASSES, Parquet, Shards

Row = dict[str, Any]  # of pack.jsonl: shard, images, bytes, and the damaged ones
FORMAT = tarfile.USTAR_FORMAT


@dataclass(frozen=True)
class Settings:
    """What the bytes of the shards depend on, beside the images."""

    side: int = 256
    quality: int = 95
    shard: int = 1000


def opened(source: Path) -> Folder | Shards | Parquet:
    """The data set of a folder of images, or of a pattern of tar or parquet files.

    Raises:
        UserError: it is none of them, or cannot be used.
    """
    kinds = {".tar": Shards, ".parquet": Parquet}
    try:
        if source.is_dir():
            return Folder(root=source)
        if source.suffix in kinds:
            return kinds[source.suffix](files=source)
    except ValueError as error:
        raise UserError(str(error)) from error
    raise UserError(f"SOURCE: found {source}; a folder of images is wanted, or a pattern of .tar or .parquet files")


def shards_of(images: int, size: int) -> list[tuple[str, range]]:
    """Names of the shards and the images in each. The names say how many there are: a missing one is noticed."""
    count = -(-images // size)
    cut = [range(start, min(start + size, images)) for start in range(0, images, size)]
    return [(f"{n:06}-of-{count:06}.tar", one) for n, one in enumerate(cut)]


def begin(out: Path, data: Folder | Shards | Parquet, settings: Settings) -> dict[str, Row]:
    """Makes the folder, or goes on with it: returns the shards that are there, by name.

    Raises:
        UserError: the folder holds something else, or another packing.
    """
    plan = asdict(settings) | {"images": len(data), "fingerprint": data.fingerprint}
    path = out / "pack.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"OUT: {out} is there, and holds no packing; choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, json.dumps(plan))
    had, fault = files.read_object(path)
    if fault:
        raise UserError(f"OUT: {fault}; choose a new folder")
    if had != plan:
        rows = "".join(
            f"    {key}: {had.get(key)} then, {plan[key]} now\n" for key in plan if had.get(key) != plan[key]
        )
        raise UserError(f"OUT: {out} holds another packing:\n{rows}choose a new folder")
    files.remove_torn(out)
    if names := getattr(data, "class_names", {}).get("class"):
        files.write_whole(out / CLASSES, json.dumps(list(names), ensure_ascii=False, indent=1))
    rows, _ = files.read_rows(out / "pack.jsonl", lambda row: {"shard", "bytes"} <= row.keys())  # torn: made again
    there = {shard.name: shard.stat().st_size for shard in out.glob("*.tar")}
    return {row["shard"]: row for row in rows if there.get(row["shard"]) == row["bytes"]}


def write(data: Folder | Shards | Parquet, settings: Settings, out: Path, shard: tuple[str, range]) -> Row:
    """Writes one shard, whole; returns what is in it."""
    name, numbers = shard
    damaged: list[dict[str, Any]] = []
    with files.whole(out / name, lasting=False) as beside, tarfile.open(beside, "w", format=FORMAT) as tar:
        for i in numbers:
            try:
                ending, content = packed(data.image(i), settings)
            except (OSError, ValueError) as error:
                known = error if isinstance(error, ImageError) else ImageError.of(error)
                damaged.append({"image": i, "error": str(known)})
                continue
            _add(tar, f"{i:09}.{ending}", content)
            if data.tasks:
                _add(tar, f"{i:09}.cls", str(data.label(i)["class"]).encode())
    return {
        "shard": name,
        "images": len(numbers) - len(damaged),
        "bytes": (out / name).stat().st_size,
        "damaged": damaged,
    }


def packed(image: Image.Image, settings: Settings) -> tuple[str, bytes]:
    """The ending and content of an image in a shard: resized to the shorter side; a small one is left as it is.

    Raises:
        OSError: its pixels cannot be decoded.
    """
    import simplejpeg

    shorter = min(image.size)
    if shorter <= settings.side:
        image.load()
        if isinstance(image, Photo):
            return "jpg", image.content
        held = io.BytesIO()
        image.save(held, "png")
        return "png", held.getvalue()
    width, height = (side * settings.side // shorter for side in image.size)
    if isinstance(image, Photo):
        pixels = image.cut((0, 0, image.height, image.width), (height, width), "bicubic").permute(1, 2, 0).numpy()
    else:
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    pixels = np.ascontiguousarray(pixels)
    return "jpg", simplejpeg.encode_jpeg(pixels, quality=settings.quality, colorsubsampling="420")


def pack(
    data: Folder | Shards | Parquet, out: Path, settings: Settings, known: Mapping[str, Row], workers: int
) -> Iterator[Row]:
    """Writes the shards that are missing; yields the row of each shard as it is there, the old ones first."""
    yield from known.values()
    missing = [one for one in shards_of(len(data), settings.shard) if one[0] not in known]
    for row in _written(partial(write, data, settings, out), missing, workers):
        files.append(out / "pack.jsonl", [row])
        yield row


def _written(one: Callable[[Any], Row], missing: Sequence[Any], workers: int) -> Iterator[Row]:
    """Shards as they are done. Processes begin afresh: a forked one would have its parent's handlers and locks."""
    if workers < 2 or len(missing) < 2:
        yield from map(one, missing)
        return
    with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn"), _alone) as pool:
        for done in as_completed([pool.submit(one, shard) for shard in missing]):
            yield done.result()


def _alone() -> None:
    import torch

    torch.set_num_threads(1)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time, no owner: the same bytes whoever packs, whenever
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
