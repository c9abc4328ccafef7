"""How are images read that lie packed in large files? Tar shards and parquet tables, through their libraries."""

from __future__ import annotations

import bisect
import glob
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from sslzoo.keys import Classes, Free
from sslzoo_datasets.images import DECODER, ENDINGS, digest, read

MOST = 10**6  # numbers above are identifiers, not classes; counting so many would fill the memory
KEPT = 256 * 2**20  # bytes of row groups that a process keeps
IN_VAIN = 4  # times that bytes are read for one use, before it is told
CLASSES = "classes.json"  # the names of the classes, in the folder of the shards
Sample = dict[str, Any]  # shard, name; and by kind (image, cls, json) where it begins and how long it is


class Shards:
    """Tar shards in the webdataset layout: name.jpg beside name.cls or name.json; needs webdataset.

    Task: class, where samples have a .cls file, or a .json file with the key `label_key`: all of them, or none. The
    names of the classes are read from classes.json, a list beside the shards, where there is one.

    Args:
        files: pattern of the shards; * and {000..146} are expanded, and each file that braces name must be there.
        label_key: the key of the label in .json files; null: labels are not read.
        classes: number of classes; that of classes.json, or counted over all samples, if left out.
    """

    decoder = DECODER

    def __init__(
        self, *, files: Annotated[Path, Free()], label_key: str | None = "label", classes: Classes | None = None
    ) -> None:
        self.paths = _expand(files)
        self.label_key = label_key
        self.samples = [sample for shard in range(len(self.paths)) for sample in _index_tar(self.paths[shard], shard)]
        if not self.samples:
            raise ValueError(f"files: no images in {files}")
        self.tasks: Mapping[str, int] = {}
        self.class_names: Mapping[str, Sequence[str]] = {}
        if label_key is not None and self._labeled():
            names = _class_names(self.paths[0].parent / CLASSES)
            self.tasks = {"class": classes or len(names) or 1 + max(self._class(i) for i in range(len(self)))}
            self.class_names = {"class": names} if len(names) == self.tasks["class"] else {}

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def fingerprint(self) -> str:
        """Of the samples' names and sizes, in order."""
        return digest(f"{sample['shard']} {sample['name']} {sample['image'][1]}" for sample in self.samples)

    def image(self, i: int) -> Image.Image:
        """Image i as RGB; raises OSError if it cannot be read."""
        return read(self._bytes(i, "image"))

    def label(self, i: int) -> Mapping[str, int]:
        """The class of image i."""
        return {"class": self._class(i)} if self.tasks else {}

    def _labeled(self) -> bool:
        bare = [sample for sample in self.samples if "cls" not in sample and "json" not in sample]
        if bare and len(bare) < len(self):
            where = f"{bare[0]['name']} in {self.paths[bare[0]['shard']]}"
            raise ValueError(
                f"files: {len(bare)} of {len(self)} samples have neither .cls nor .json, the first of them {where}; "
                "add them, or set label_key: null where labels are not needed"
            )
        return not bare

    def _class(self, i: int) -> int:
        kind = "cls" if "cls" in self.samples[i] else "json"
        text = self._bytes(i, kind).decode(errors="replace").strip()
        try:
            found = int(text) if kind == "cls" else json.loads(text)[self.label_key]
            if isinstance(found, bool) or found != int(found) or not 0 <= found < MOST:
                raise ValueError(found)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            where = f"{self.samples[i]['name']}.{kind} in {self.paths[self.samples[i]['shard']]}"
            wanted = "" if kind == "cls" else f" under the key {self.label_key!r}"
            raise ValueError(
                f"files: {where} holds {text[:60]!r}; a class from 0 on is wanted{wanted}, below {MOST:,}"
            ) from error
        return int(found)

    def _bytes(self, i: int, kind: str) -> bytes:
        shard, (offset, size) = self.samples[i]["shard"], self.samples[i][kind]
        with self.paths[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size)


def _class_names(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        names = json.loads(path.read_text())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not such a list")
    except ValueError as error:
        raise ValueError(f"files: {path} should hold a list of the classes' names: {error}") from error
    return names


class Parquet:
    """Parquet tables in the Hugging Face layout: a column of image bytes and one of labels; needs pyarrow.

    Task: class, where the tables have the label column.

    Args:
        files: pattern of the tables; * and {000..146} are expanded, and each file that braces name must be there.
        image_column: column of the images, binary or a struct with the field bytes.
        label_column: column of the labels, whole numbers from 0 on; null: labels are not read.
        classes: number of classes; counted if left out.
    """

    decoder = DECODER

    def __init__(
        self,
        *,
        files: Annotated[Path, Free()],
        image_column: str = "image",
        label_column: str | None = "label",
        classes: Classes | None = None,
    ) -> None:
        self.paths, self.image_column = _expand(files), image_column
        self.groups: list[tuple[int, int, int]] = []  # table, row group, rows
        self._metadata: list[Any] = []
        self._kept: OrderedDict[int, Any] = OrderedDict()  # columns of the row groups read last
        labels: list[list[int]] = []
        for table, path in enumerate(self.paths):
            file = _table(path)
            _check_image_column(file.schema_arrow, image_column, path)
            meta = file.metadata
            self._metadata.append(meta)
            self.groups += [(table, group, meta.row_group(group).num_rows) for group in range(meta.num_row_groups)]
            if label_column is not None and label_column in file.schema_arrow.names:
                labels.append(_labels(file, label_column, path))
        self.ends = list(accumulate(rows for _, _, rows in self.groups))
        if not self.ends or not self.ends[-1]:
            raise ValueError(f"files: no rows in {files}")
        if labels and len(labels) < len(self.paths):
            bare = len(self.paths) - len(labels)
            raise ValueError(
                f"label_column: {bare} of {len(self.paths)} tables have no column {label_column!r}; "
                "set label_column: null where labels are not needed"
            )
        self.labels = [label for of_table in labels for label in of_table]
        self.tasks: Mapping[str, int] = {"class": classes or 1 + max(self.labels)} if self.labels else {}

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def fingerprint(self) -> str:
        """Of the tables' names, row groups and labels, in order."""
        groups = (f"{self.paths[table].name} {group} {rows}" for table, group, rows in self.groups)
        return digest([*groups, *map(str, self.labels)])

    @property
    def advice(self) -> str:
        """How much is read in vain where images come in random order, and what spares it; nothing where it is little.

        A row group that is kept is not read again, and each worker keeps KEPT bytes of them all.
        """
        sizes = [self._metadata[table].row_group(group).total_byte_size for table, group, _ in self.groups]
        whole = max(1, sum(sizes))
        # An image lies in a group as often as that has rows, and costs its bytes unless it is kept.
        read = sum(size * rows for size, (_, _, rows) in zip(sizes, self.groups, strict=True)) / whole
        times = read * (1 - min(1.0, KEPT / whole))
        if times < IN_VAIN:
            return ""
        return (
            f"a shuffled epoch reads {times:.0f} bytes of these tables for one that it uses, a row group for an image: "
            "`sslzoo data pack` makes shards that are read image by image"
        )

    def image(self, i: int) -> Image.Image:
        """Image i as RGB; raises OSError if it cannot be read."""
        group = bisect.bisect_right(self.ends, i)
        value = self._column(group)[i - (self.ends[group] - self.groups[group][2])].as_py()
        content = value["bytes"] if isinstance(value, Mapping) else value
        if content is None:
            raise OSError(f"row {i} holds no image in the column {self.image_column!r}")
        return read(content)

    def label(self, i: int) -> Mapping[str, int]:
        """The class of image i."""
        return {"class": self.labels[i]} if self.tasks else {}

    def _column(self, group: int) -> Any:
        """The images of a row group; the groups read last are kept, up to KEPT bytes in each process."""
        if group not in self._kept:
            table, inside, _ = self.groups[group]
            file = _table(self.paths[table], self._metadata[table])
            self._kept[group] = file.read_row_group(inside, [self.image_column])[self.image_column]
            while len(self._kept) > 1 and sum(column.nbytes for column in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]


def _table(path: Path, metadata: Any = None) -> Any:
    parquet, arrow = _library("pyarrow.parquet"), _library("pyarrow")
    try:
        return parquet.ParquetFile(path, metadata=metadata)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"files: {path} is not a parquet table that can be read: {error}") from error


def _check_image_column(schema: Any, column: str, path: Path) -> None:
    types = _library("pyarrow.types")
    if column not in schema.names:
        raise ValueError(f"image_column: {path} has no column {column!r}; it has {', '.join(schema.names)}")
    found = kind = schema.field(column).type
    if types.is_struct(found) and "bytes" in [found.field(i).name for i in range(found.num_fields)]:
        kind = found.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)):
        raise ValueError(
            f"image_column: {column!r} of {path} holds {found}; encoded images are wanted: binary, or a struct with "
            "the field bytes"
        )


def _labels(file: Any, column: str, path: Path) -> list[int]:
    kind = file.schema_arrow.field(column).type
    if not _library("pyarrow.types").is_integer(kind):
        raise ValueError(
            f"label_column: {column!r} of {path} holds {kind}; whole numbers are wanted, or label_column: null"
        )
    found = file.read([column])[column]
    if found.null_count:
        raise ValueError(f"label_column: {column!r} of {path} lacks {found.null_count} of {len(found)} labels")
    ends = _library("pyarrow.compute").min_max(found).as_py() if len(found) else {}
    wrong = [end for end in ends.values() if not 0 <= end < MOST]
    if wrong:
        raise ValueError(f"label_column: {column!r} of {path} holds {wrong[0]}; classes count from 0, below {MOST:,}")
    return found.to_pylist()


def _index_tar(path: Path, shard: int) -> list[Sample]:
    """Samples of a shard: where the image and its labels begin, and how long they are.

    webdataset reads shards front to back; reading image i of an epoch's order needs offsets, so the members are listed
    once with the standard library, and names are split as webdataset splits them.
    """
    import tarfile

    base_plus_ext = _library("webdataset.tariterators").base_plus_ext
    samples: dict[str, Sample] = {}
    try:
        with tarfile.open(path, "r:") as tar:  # in a compressed one nothing lies where its list says
            for member in tar:
                name, ending = base_plus_ext(member.name)
                if not member.isfile() or name is None or _hidden(name):
                    continue
                kind = "image" if f".{ending.lower()}" in ENDINGS else ending.lower()
                if kind in ("image", "cls", "json"):
                    sample = samples.setdefault(name, {"shard": shard, "name": name})
                    if kind in sample:
                        raise ValueError(f"files: {path} holds two files {kind!r} of the sample {name}")
                    sample[kind] = (member.offset_data, member.size)
            end = tar.offset
        fault = _not_the_end(path, end)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"files: {path} is not an uncompressed tar file that can be read: {error}") from error
    if fault:
        raise ValueError(f"files: {path} is damaged: {fault}")
    return [sample for sample in samples.values() if "image" in sample]


def _not_the_end(path: Path, offset: int) -> str:
    """Why a tar file does not end where the library stopped reading it, or nothing.

    It stops without a word at a header that it cannot read, and at the end of the first of files that were joined.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if len(block := file.read(512)) < 512:
            return f"it is torn at byte {offset + len(block):,}"
        if any(block):
            return f"what follows byte {offset:,} cannot be read"
        while block := file.read(1 << 20):
            if block.count(0) < len(block):
                return f"after its end, at byte {offset:,}, there is more; tar files cannot be joined with cat"
    return ""


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in name.split("/"))


def _expand(files: Path) -> list[Path]:
    """The files of a pattern: every one that braces name, whatever * finds; shards known to be missing are told."""
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", str(files))
    if math.prod(1 + abs(int(last) - int(first)) for first, last in ranges) > MOST:
        raise ValueError(f"files: {files} names more than {MOST:,} files")
    patterns = list(_library("braceexpand").braceexpand(str(files)))
    found = {pattern: sorted(glob.glob(pattern)) for pattern in patterns}  # noqa: PTH207 - absolute too
    missing = [pattern for pattern in patterns if not found[pattern]]
    if len(missing) == len(patterns):
        raise ValueError(f"files: nothing matches {files}")
    if missing:
        raise ValueError(f"files: {len(missing)} of {len(patterns)} are missing: {_some(missing)}")
    for pattern in patterns:
        if glob.has_magic(pattern):
            _check_numbered([Path(path) for path in found[pattern]])
    return [Path(path) for pattern in patterns for path in found[pattern]]


def _check_numbered(paths: Sequence[Path]) -> None:
    """Files called NAME-00003-of-00014.ENDING tell how many there should be."""
    there: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if parts := re.match(r"(.*?)(\d+)-of-(\d+)(?=\D|$)", path.name):
            there.setdefault((path.parent, parts[1], int(parts[3])), set()).add(int(parts[2]))
    for (folder, name, count), numbers in there.items():
        if len(numbers) < count:
            raise ValueError(
                f"files: {len(numbers)} of {count} are here of {folder / name}...-of-{count:05}; name those that are "
                "wanted with {00000..00002}, or fetch the rest"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _library(name: str) -> Any:
    from importlib import import_module

    package = name.split(".")[0]
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(f"this data set needs {package}: pip install {package}") from None
