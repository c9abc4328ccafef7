"""How are images read that lie packed in large files? Tar shards and parquet tables, through their libraries."""

from __future__ import annotations

import glob
import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from sslzoo_datasets.folder import ENDINGS


class Shards:
    """Tar shards in the webdataset layout: name.jpg beside name.cls or name.json; needs `sslzoo[shards]`.

    Task: class, where every sample has a .cls file, or a .json file with the key `label_key`.

    Args:
        files: pattern of the shards; * and {000..146} are expanded.
        label_key: the key of the label in .json files.
        classes: number of classes; counted over all samples if left out.
    """

    def __init__(self, *, files: Path, label_key: str = "label", classes: int | None = None) -> None:
        self.paths = _expand(files)
        self.label_key = label_key
        self.samples = [sample for shard in range(len(self.paths)) for sample in _index_tar(self.paths[shard], shard)]
        if not self.samples:
            raise ValueError(f"files: no images in {files}")
        self.tasks: Mapping[str, int] = {}
        if all("cls" in sample or "json" in sample for sample in self.samples):
            count = classes or 1 + max(self._class(i) for i in range(len(self.samples)))
            self.tasks = {"class": count}

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, i: int) -> Image.Image:
        """Image i as RGB; raises OSError if it cannot be read."""
        return _decoded(self._bytes(i, "image"))

    def label(self, i: int) -> Mapping[str, int]:
        """The class of image i."""
        return {"class": self._class(i)} if self.tasks else {}

    def _class(self, i: int) -> int:
        if "cls" in self.samples[i]:
            return int(self._bytes(i, "cls"))
        return int(json.loads(self._bytes(i, "json"))[self.label_key])

    def _bytes(self, i: int, kind: str) -> bytes:
        shard, (offset, size) = self.samples[i]["shard"], self.samples[i][kind]
        with self.paths[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size)


class Parquet:
    """Parquet tables in the Hugging Face layout: a column of image bytes and one of labels; needs `sslzoo[shards]`.

    Task: class, where the label column exists.

    Args:
        files: pattern of the tables; * and {000..146} are expanded.
        image_column: column of the images, binary or a struct with the field bytes.
        label_column: column of the labels, whole numbers.
        classes: number of classes; counted if left out.
    """

    def __init__(
        self, *, files: Path, image_column: str = "image", label_column: str = "label", classes: int | None = None
    ) -> None:
        parquet = _library("pyarrow.parquet")
        self.paths, self.image_column = _expand(files), image_column
        self.groups: list[tuple[int, int, int]] = []  # table, row group, rows
        labels: list[int] = []
        for table, path in enumerate(self.paths):
            file = parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if image_column not in names:
                raise ValueError(f"image_column: {path} has no column {image_column!r}; it has {', '.join(names)}")
            meta = file.metadata
            self.groups += [(table, group, meta.row_group(group).num_rows) for group in range(meta.num_row_groups)]
            if label_column in names:
                labels += file.read([label_column])[label_column].to_pylist()
        self.ends = _running([rows for _, _, rows in self.groups])
        self.labels = labels if len(labels) == self.ends[-1] else []
        self.tasks: Mapping[str, int] = {"class": classes or 1 + max(self.labels)} if self.labels else {}

    def __len__(self) -> int:
        return self.ends[-1]

    def image(self, i: int) -> Image.Image:
        """Image i as RGB; raises OSError if it cannot be read."""
        import bisect

        group = bisect.bisect_right(self.ends, i)
        table, inside, rows = self.groups[group]
        column = _row_group(str(self.paths[table]), inside, self.image_column)
        value = column[i - (self.ends[group] - rows)].as_py()
        return _decoded(value["bytes"] if isinstance(value, Mapping) else value)

    def label(self, i: int) -> Mapping[str, int]:
        """The class of image i."""
        return {"class": self.labels[i]} if self.tasks else {}


@lru_cache(maxsize=8)  # shuffled reading comes back to a group; a few hundred megabytes a worker at most
def _row_group(path: str, group: int, column: str) -> Any:
    return _library("pyarrow.parquet").ParquetFile(path).read_row_group(group, [column])[column]


def _index_tar(path: Path, shard: int) -> list[dict[str, Any]]:
    """Samples of a shard: where the image and its labels begin, and how long they are.

    webdataset reads shards front to back; reading image i of an epoch's order needs offsets, so the members are listed
    once with the standard library, and names are split as webdataset splits them.
    """
    import tarfile

    base_plus_ext = _library("webdataset.tariterators").base_plus_ext
    samples: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name, ending = base_plus_ext(member.name)
            if not member.isfile() or name is None:
                continue
            kind = "image" if f".{ending.lower()}" in ENDINGS else ending.lower()
            if kind in ("image", "cls", "json"):
                samples.setdefault(name, {"shard": shard})[kind] = (member.offset_data, member.size)
    return [sample for sample in samples.values() if "image" in sample]


def _expand(files: Path) -> list[Path]:
    patterns = list(_library("braceexpand").braceexpand(str(files)))
    paths = [Path(path) for pattern in patterns for path in sorted(glob.glob(pattern))]  # noqa: PTH207 - absolute too
    if not paths:
        raise ValueError(f"files: nothing matches {files}")
    return paths


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise ValueError(f"this data set needs {name.split('.')[0]}: pip install 'sslzoo[shards]'") from None


def _running(counts: Sequence[int]) -> list[int]:
    ends, total = [], 0
    for count in counts:
        total += count
        ends.append(total)
    return ends


def _decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")
