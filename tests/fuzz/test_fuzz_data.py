"""Damaged and odd data sets: every image is what was written, and every label, or it is told.

The truth is what the generator wrote: of each image its brightness, its bright corner and its class.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Case, beyond, tried
from PIL import Image

from sslzoo import catalogue
from sslzoo.errors import UserError
from sslzoo.recipe.build import make
from sslzoo.run.data import UNREADABLE
from sslzoo.run.identity import identity

SIDE = (12, 20)  # height, width; the upper left quarter is brighter


@dataclass(frozen=True)
class Truth:
    """What an image shows, None for what no scale can tell; whether it may be unreadable; and its class."""

    base: int | None
    broken: bool = False
    label: Any = None


def _pixels(base: int) -> np.ndarray:
    x = np.full(SIDE, base, np.uint8)
    x[:6, :10] += 40
    return x


def _bytes(image: Image.Image, kind: str, **more: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


def _exif(gray: Image.Image, rng: random.Random) -> bytes:
    """Stored turned, with the word that turns it back."""
    turn = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 77])
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that undo each
    stored = gray.transpose(Image.Transpose(back[turn])) if turn in back else gray
    exif = Image.Exif()
    exif[274] = turn
    return _bytes(stored.convert("RGB"), "jpeg", quality=100, exif=exif)


def _sixteen(gray: Image.Image, kind: str) -> bytes:
    return _bytes(Image.fromarray(np.asarray(gray).astype(np.uint16) * 257), kind)


def _encoded(rng: random.Random) -> tuple[bytes, Truth, str]:
    """An image file of any mode and format; what it shows; and its name's ending."""
    base = rng.randrange(10, 200)
    gray = Image.fromarray(_pixels(base))
    color = gray.convert("RGB")
    made: dict[str, tuple[Callable[[], bytes], str, int | None]] = {
        "gray": (lambda: _bytes(gray, "png"), "png", base),
        "rgb": (lambda: _bytes(color, "png"), "PNG", base),
        "jpeg": (lambda: _bytes(color, "jpeg", quality=100), "JPEG", base),
        "gray jpeg": (lambda: _bytes(gray, "jpeg", quality=100), "jpg", base),
        "palette": (lambda: _bytes(gray.convert("P"), "png"), "png", base),
        "gif": (lambda: _bytes(gray.convert("P"), "gif"), "gif", base),
        "cmyk": (lambda: _bytes(color.convert("CMYK"), "tiff"), "tif", base),
        "cmyk jpeg": (lambda: _bytes(color.convert("CMYK"), "jpeg", quality=100), "jpg", base),
        "rgba": (lambda: _bytes(color.convert("RGBA"), "png"), "png", base),
        "la": (lambda: _bytes(gray.convert("LA"), "png"), "png", base),
        "clear palette": (lambda: _bytes(gray.convert("P"), "png", transparency=3), "png", base),
        "16 bit": (lambda: _sixteen(gray, "png"), "png", base),
        "16 bit tiff": (lambda: _sixteen(gray, "tiff"), "tiff", base),
        "float": (lambda: _bytes(Image.fromarray(np.asarray(gray) / np.float32(255)), "tiff"), "tiff", base),
        "float beyond": (lambda: _bytes(Image.fromarray(np.asarray(gray).astype(np.float32)), "tiff"), "tif", None),
        "32 bit": (lambda: _bytes(Image.fromarray(np.asarray(gray).astype(np.int32) << 20), "tiff"), "tif", None),
        "exif": (lambda: _exif(gray, rng), "jpg", base),
        "webp": (lambda: _bytes(color, "webp", lossless=True), "webp", base),
        "bmp": (lambda: _bytes(color, "bmp"), "bmp", base),
        "ppm": (lambda: _bytes(color, "ppm"), "ppm", base),
        "ycbcr": (lambda: _bytes(color.convert("YCbCr"), "jpeg", quality=100), "jpg", base),
        "lab": (lambda: _bytes(Image.new("LAB", SIDE[::-1], (base, 0, 0)), "tiff"), "tiff", -1),
        "one pixel": (lambda: _bytes(Image.new("L", (1, 1), base), "png"), "png", -1),
        "a line": (lambda: _bytes(Image.new("L", (3000, 1), base), "png"), "png", -1),
        "wrong ending": (lambda: _bytes(color, "png"), "jpg", base),
        "text": (lambda: b"not an image", "jpg", None),
        "empty": (lambda: b"", "png", None),
        "html": (lambda: b"<html>404</html>" * 9, "jpeg", None),
    }
    write, ending, told = made[rng.choice(sorted(made))]
    content = write()
    broken = told is None
    kind = rng.random()
    if kind < 0.08:
        content, broken = content[: rng.randrange(len(content) + 1)], True
    elif kind < 0.16 and content:
        at = rng.randrange(len(content))
        content, told, broken = content[:at] + rng.randbytes(2) + content[at + 2 :], -1, True
    return content, Truth(told, broken), ending


def _fault(image: Image.Image, truth: Truth) -> str:
    """What an image shows that it should not."""
    if image.mode != "RGB":
        return f"its mode is {image.mode}"
    if truth.base is None:
        return "it was read, though nobody can tell its numbers"
    if truth.base < 0:
        return ""
    x = np.asarray(image).astype(int)
    if x.shape != (*SIDE, 3):
        return f"its shape is {x.shape}"
    bright, dark = x[1:5, 1:9].mean(), x[7:, 11:].mean()
    if abs(bright - truth.base - 40) > 12 or abs(dark - truth.base) > 12:
        return f"its bright corner is {bright:.0f}, the rest {dark:.0f}, not {truth.base + 40} and {truth.base}"
    return ""


@functools.cache
def _parts():
    return catalogue()


def _opened(spec: dict[str, Any]) -> Any:
    """The data set as a run opens it, its identity known and every label looked at."""
    data = make(_parts(), "datasets", spec, place="data")
    identity(data)
    return data


def _looked_through(spec: dict[str, Any], truths: Callable[[Any, int], Truth | None], count: int | None) -> str:
    """What is silently wrong with the data set that a spec opens; or raises a clean error."""
    data = _opened(spec)
    if count is not None and len(data) != count:
        return f"it has {len(data)} images; {count} were written"
    for i in range(len(data)):
        truth = truths(data, i)
        label = data.label(i)
        for task, classes in data.tasks.items():
            if not 0 <= label[task] < classes <= 10**6:
                return f"image {i} has the label {label[task]} of {classes} classes"
        if truth is not None and truth.label is not None and data.tasks and label["class"] != truth.label:
            return f"image {i} has the label {label}, not {truth.label}"
        try:
            image = data.image(i)
            image.load()  # a JPEG is decoded when it is asked for its pixels
        except UNREADABLE as error:
            if truth is not None and not truth.broken:
                return f"image {i} cannot be read, though it is whole: {error}"
            continue
        fault = _fault(image, truth) if truth is not None else ""
        if fault:
            return f"image {i}: {fault}"
    return ""


def _case(told: str, look: Callable[[], str], names: tuple[str, ...] = ("data",), wrong: bool = False) -> Case:
    seen: list[str] = []
    return Case(
        told,
        call=lambda: seen.append(look()),
        names=names,
        wrong=wrong,
        judge=lambda kind, _: seen[0] if kind == "valid" else "",
    )


NAMES = ("cat", "ant", "bee", "n01440764", "Zebra", "été", "a b", "1", "10", "2", "x'y", "$(touch made)", "-x", "[a]")
NAMES += ("a\nb", "x" * 200, "\u202egnp", "\udcff", "%d", "{000..002}", "*", "a,b", "a.png", "classes", "train")


def folders(rng: random.Random, folder: Path) -> Case:
    """A tree of image files, with what people leave in such trees."""
    root = folder / "root"
    truths: dict[str, Truth] = {}
    told = []
    for name in rng.sample(NAMES, rng.choice([1, 2, 3])):
        for number in range(rng.choice([1, 2, 3])):
            content, truth, ending = _encoded(rng)
            inside = f"{name}/deep/{number}.{ending}" if rng.random() < 0.1 else f"{name}/{number}.{ending}"
            (root / inside).parent.mkdir(parents=True, exist_ok=True)
            (root / inside).write_bytes(content)
            truths[inside] = truth
    count: int | None = len(truths)
    odd = rng.choice([*ODD, None])
    if odd is not None:
        told.append(odd.__name__)
        count = odd(rng, root, truths)
    order = sorted(truths)
    classes = sorted({name.split("/")[0] for name in order if "/" in name})
    flat = any("/" not in name for name in order)
    spec = {"use": "folder", "root": str(root)}
    if count == -1:  # it must be refused
        return _case(f"a tree with {told}", lambda: str(_opened(spec)), wrong=True)

    def truth(data: Any, i: int) -> Truth | None:
        name = data.index.files[i]
        if name not in truths:
            return None
        found = truths[name]
        label = None if flat or len(classes) < 2 else classes.index(name.split("/")[0])
        return Truth(found.base, found.broken, label)

    return _case(f"a tree with {told}", lambda: _looked_through(spec, truth, count))


def _add(root: Path, name: str, content: bytes | None = None) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(_bytes(Image.fromarray(_pixels(50)), "png") if content is None else content)


def hidden(rng, root, truths):
    """Folders and files that no person made as data."""
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/._a.png", "cat/.a.png", ".DS_Store", "cat/._b.jpg", "Thumbs.db"):
        _add(root, name)
    return len(truths)


def empty_class(rng, root, truths):
    """A class without images is no class."""
    (root / "aaa-empty").mkdir()
    return len(truths)


def stray(rng, root, truths):
    """An image in the root, so that there are no classes."""
    _add(root, "stray.png")
    truths["stray.png"] = Truth(50)
    return len(truths)


def notes(rng, root, truths):
    """Files that are no images."""
    for name in ("README.md", "labels.csv", "cat/list.txt", "cat/a.png.part", "cat/a.npy"):
        _add(root, name, b"x")
    return len(truths)


def dangling(rng, root, truths):
    """A link that leads nowhere: an image that cannot be read."""
    (root / "zzz").mkdir()
    (root / "zzz" / "gone.png").symlink_to("nowhere.png")
    truths["zzz/gone.png"] = Truth(None, True)
    return len(truths)


def ring(rng, root, truths):
    """A folder that holds a link to the folder around it: no image counts twice."""
    (root / "zzz").mkdir()
    _add(root, "zzz/a.png")
    truths["zzz/a.png"] = Truth(50)
    (root / "zzz" / "loop").symlink_to(root if rng.random() < 0.5 else root / "zzz", target_is_directory=True)
    return len(truths)


def self_link(rng, root, truths):
    """A link to itself, called an image or a folder."""
    (root / "zzz").mkdir()
    _add(root, "zzz/a.png")
    truths["zzz/a.png"] = Truth(50)
    name = rng.choice(["loop", "loop.png"])
    (root / "zzz" / name).symlink_to(name)
    if name.endswith("png"):
        truths["zzz/loop.png"] = Truth(None, True)
    return


def linked(rng, root, truths):
    """Links to images and to folders elsewhere are followed."""
    _add(root.parent / "elsewhere", "b.png")
    (root / "zzz").symlink_to(root.parent / "elsewhere", target_is_directory=True)
    truths["zzz/b.png"] = Truth(50)
    return len(truths)


def folder_like_an_image(rng, root, truths):
    """A folder called x.png."""
    _add(root, "zzz/x.png/y.png")
    truths["zzz/x.png/y.png"] = Truth(50)
    return len(truths)


def pipe(rng, root, truths):
    """Something that is called an image and is no file: reading it would wait for ever."""
    (root / "zzz").mkdir()
    _add(root, "zzz/a.png")
    truths["zzz/a.png"] = Truth(50)
    os.mkfifo(root / "zzz" / "pipe.png")
    return


def bad_cache(rng, root, truths):
    """The cached index is torn, of another version, or names files that are not there."""
    from sslzoo_datasets.folder import cache_path

    place = cache_path(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    odd = [b"", b"{", b"[]", b'{"files": 3, "folders": {}}', b'{"files": ["gone.png"], "folders": {}}', b"\xff\xfe"]
    odd += [b'{"files": [1, null], "folders": {}}', b'{"files": [], "folders": []}', b"[" * 100_000, b"null"]
    odd += [b'{"files": ["/etc/x.png", "../x.png"], "folders": {}}', b'{"files": [], "folders": {"": "x"}}']
    place.write_bytes(rng.choice(odd))
    return len(truths)


def gone(rng, root, truths):
    """No folder, a file, a folder without images."""
    import shutil

    shutil.rmtree(root)
    kind = rng.choice(["gone", "file", "empty", "link", "ring", "notes"])
    if kind == "file":
        root.write_bytes(b"x")
    elif kind in ("empty", "notes"):
        root.mkdir()
        _add(root, "a/notes.txt", b"") if kind == "notes" else None
    elif kind == "link":
        root.symlink_to("nowhere")
    elif kind == "ring":
        root.symlink_to(root)
    return -1


ODD = (
    hidden,
    empty_class,
    stray,
    notes,
    dangling,
    ring,
    self_link,
    linked,
    folder_like_an_image,
    pipe,
    bad_cache,
    gone,
)


def _member(tar: tarfile.TarFile, name: str, content: bytes, **more: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content) if info.isreg() else None)


LABELS = (
    b"0",
    b"1",
    b" 2 \n",
    b"-1",
    b"1.5",
    b"x",
    b"",
    b"\xff",
    b"1" * 5000,
    b"999999999999",
    b"1e3",
    b"True",
    b"nan",
)
JSON = (3, 0, -1, 1.0, 1.5, "3", None, True, [], {}, 1e400, float("nan"), 10**30, "x" * 900)


def _add_odd(rng: random.Random, tar: tarfile.TarFile, odd: str) -> None:
    """A member, or a sample, that is not like the others."""
    png = _bytes(Image.fromarray(_pixels(50)), "png")
    if odd == "hidden":
        _member(tar, "__MACOSX/._a.png", b"x")
        _member(tar, "./.b.cls", b"1")
    elif odd == "link":
        _member(tar, "zzz.png", b"", type=tarfile.SYMTYPE, linkname="nowhere")
    elif odd == "folder":
        _member(tar, "zzz.png", b"", type=tarfile.DIRTYPE)
    elif odd == "twice":
        _member(tar, "zzz.png", b"x")
        _member(tar, "zzz.jpg", b"x")
    elif odd == "deep":
        _member(tar, "./a/b.c/zzz.png", png)
        _member(tar, "./a/b.c/zzz.cls", b"1")
    elif odd:
        _member(tar, "zzz.png", png)
    if odd == "label":
        _member(tar, "zzz.cls", rng.choice(LABELS))
    elif odd == "json label":
        _member(tar, "zzz.json", json.dumps({"label": rng.choice(JSON)}).encode())


def shards(rng: random.Random, folder: Path) -> Case:
    """Tar files: odd members, labels of every kind, torn ends, numbers that are missing."""
    truths: dict[tuple[int, str], Truth] = {}
    told: list[str] = []
    kind = rng.choice(["cls", "json", "none"])
    wrong = False
    for shard in range(count := rng.choice([1, 2, 3])):
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as tar:
            for number in range(rng.choice([1, 2, 3])):
                content, truth, ending = _encoded(rng)
                name, label = f"{shard:03}{number:03}", rng.randrange(4)
                _member(tar, f"{name}.{ending}", content)
                if kind == "cls":
                    _member(tar, f"{name}.cls", str(label).encode())
                elif kind == "json":
                    _member(tar, f"{name}.json", json.dumps({"label": label}).encode())
                truths[shard, name] = Truth(truth.base, truth.broken, None if kind == "none" else label)
            odd = rng.choice(["", "", "hidden", "link", "folder", "label", "json label", "twice", "bare", "deep"])
            told.append(odd)
            _add_odd(rng, tar, odd)
            wrong |= odd == "twice" or (odd == "bare" and kind != "none")
            if odd in ("label", "json label", "bare"):
                truths[shard, "zzz"] = Truth(50)
            elif odd == "deep":
                truths[shard, "./a/b.c/zzz"] = Truth(50)
        content = held.getvalue()
        damage = rng.choice(["", "", "", "", "torn", "empty", "text", "gz", "bytes"])
        told.append(damage)
        if damage:
            content = {
                "torn": lambda c=content: c[: rng.randrange(len(c))],
                "empty": lambda: b"",
                "text": lambda: b"not a tar file" * 99,
                "gz": lambda c=content: __import__("gzip").compress(c),
                "bytes": lambda c=content: c[: (at := rng.randrange(len(c)))] + rng.randbytes(9) + c[at + 9 :],
            }[damage]()
            truths = {key: Truth(-1, True) for key in truths}
            wrong |= damage in ("empty", "text", "gz")
        (folder / f"s-{shard:03}.tar").write_bytes(content)
    pattern = rng.choice(
        ["s-*.tar", f"s-{{000..{count - 1:03}}}.tar", "s-{000..007}.tar", "nothing-*.tar", "s-000.tar"]
    )
    wrong |= pattern.startswith("nothing") or (pattern.endswith("007}.tar"))
    wrong &= pattern != "s-000.tar"  # others are not looked at
    spec: dict[str, Any] = {"use": "shards", "files": str(folder / pattern)}

    def truth(data: Any, i: int) -> Truth | None:
        sample = data.samples[i]
        return truths.get((sample["shard"], sample["name"]))

    loose = any(one in ("torn", "bytes", "link") for one in told) or pattern == "s-000.tar"
    counted = None if loose else len(truths)
    return _case(f"shards {pattern} with {told}", lambda: _looked_through(spec, truth, counted), wrong=wrong)


def parquet(rng: random.Random, folder: Path) -> Case:
    """Tables: columns of every type, rows without an image or a label, torn files."""
    import pyarrow as arrow
    import pyarrow.parquet

    rows = rng.choice([0, 1, 3, 5])
    made = [_encoded(rng) for _ in range(rows)]
    labels = [rng.randrange(3) for _ in range(rows)]
    contents: list[Any] = [content for content, _, _ in made]
    if rows and rng.random() < 0.2:
        contents[0] = None
        made[0] = (b"", Truth(None, True), "")
    image = rng.choice(["binary", "struct", "struct", "text", "numbers", "large"])
    label = rng.choice(["int64", "int8", "none", "none", "null", "text", "float", "negative", "huge", "bool", "list"])
    columns: dict[str, Any] = {
        "image": {
            "binary": lambda: arrow.array(contents, arrow.binary()),
            "large": lambda: arrow.array(contents, arrow.large_binary()),
            "struct": lambda: arrow.array(
                [None if one is None else {"bytes": one, "path": None} for one in contents],
                arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]),
            ),
            "text": lambda: arrow.array(["x"] * rows, arrow.string()),
            "numbers": lambda: arrow.array([[1, 2]] * rows, arrow.list_(arrow.uint8())),
        }[image]()
    }
    if label != "none":
        columns["label"] = {
            "int64": lambda: arrow.array(labels, arrow.int64()),
            "int8": lambda: arrow.array(labels, arrow.uint8()),
            "null": lambda: arrow.array([None, *labels[1:]][:rows], arrow.int64()),
            "text": lambda: arrow.array(["cat"] * rows, arrow.string()),
            "float": lambda: arrow.array([0.5] * rows, arrow.float64()),
            "negative": lambda: arrow.array([-1] * rows, arrow.int64()),
            "huge": lambda: arrow.array([2**62] * rows, arrow.int64()),
            "bool": lambda: arrow.array([True] * rows, arrow.bool_()),
            "list": lambda: arrow.array([[1]] * rows, arrow.list_(arrow.int64())),
        }[label]()
    path = folder / "t-00000-of-00001.parquet"
    pyarrow.parquet.write_table(arrow.table(columns), path, row_group_size=2)
    damage = rng.choice(["", "", "", "torn", "empty", "text", "bytes", "twin"])
    content = path.read_bytes()
    if damage == "twin":
        pyarrow.parquet.write_table(arrow.table({"image": columns["image"]}), folder / "u.parquet")
    elif damage:
        at = rng.randrange(len(content))
        path.write_bytes(
            {
                "torn": content[:at],
                "empty": b"",
                "text": b"PAR1 not a table PAR1",
                "bytes": content[:at] + rng.randbytes(9) + content[at + 9 :],
            }[damage]
        )
    spec: dict[str, Any] = {"use": "parquet", "files": str(folder / "*.parquet")}
    wrong = damage in ("torn", "empty", "text") or image in ("text", "numbers") or not rows
    wrong |= label in ("text", "float", "negative", "huge", "bool", "list") or (label == "null" and rows > 0)
    wrong |= damage == "twin" and label != "none"
    wrong &= damage != "bytes"

    def truth(_data: Any, i: int) -> Truth | None:
        if damage == "bytes":
            return None
        one = made[i % rows][1]
        return Truth(one.base, one.broken, labels[i % rows] if label in ("int64", "int8") else None)

    count = None if damage == "bytes" else rows * (2 if damage == "twin" else 1)
    told = f"a table of {rows} rows, {image} images, {label} labels, {damage or 'whole'}"
    return _case(told, lambda: _looked_through(spec, truth, count), wrong=wrong)


def probed(rng: random.Random, folder: Path) -> Case:
    """Train and test sets whose classes are named otherwise: one numbering, or told."""
    from sslzoo.evaluate.bench import matched

    names = rng.sample(NAMES, 3)
    sides = {}
    for side in ("train", "test"):
        chosen = rng.sample(names, rng.choice([1, 2, 3, 3]))
        for name in chosen:
            _add(folder / side, f"{name}/{NAMES.index(name)}.png")
        sides[side] = sorted(chosen)

    def look() -> str:
        train, test = (_opened({"use": "folder", "root": str(folder / side)}) for side in ("train", "test"))
        problems: list[Any] = []
        found = matched(train, test, problems, [])
        if problems:
            raise UserError("evaluate: " + "; ".join(f"{one.place}: {one.message}" for one in problems))
        for i in range(len(found)):
            name = test.index.files[i].split("/")[0]
            if sides["train"][found.label(i)["class"]] != name:
                return f"image {test.index.files[i]} is numbered as {sides['train'][found.label(i)['class']]}"
        return ""

    wrong = len(sides["train"]) < 2 or len(sides["test"]) < 2 or bool(set(sides["test"]) - set(sides["train"]))
    return _case(f"classes {sides}"[:300], look, names=("evaluate",), wrong=wrong)


QUICK = {folders: 60, shards: 60, parquet: 50, probed: 20}
MANY = {folders: 3000, shards: 3000, parquet: 2000, probed: 600}


def _tried(generator, seeds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = tried(generator, seeds, tmp_path)
    assert not told.defects, str(told)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("generator", QUICK, ids=lambda one: one.__name__)
def test_odd_data_sets(generator, tmp_path, monkeypatch):
    _tried(generator, range(QUICK[generator]), tmp_path, monkeypatch)


@pytest.mark.fuzz
@pytest.mark.parametrize("generator", MANY, ids=lambda one: one.__name__)
def test_many_odd_data_sets(generator, tmp_path, monkeypatch):
    _tried(generator, beyond(QUICK[generator], MANY[generator]), tmp_path, monkeypatch)
