"""Image folders, tar shards and parquet tables: written here, read back, broken on purpose."""

import gzip
import io
import json
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from sslzoo import catalogue

PARTS = catalogue().parts["datasets"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(number):
    return Image.fromarray(np.full((6, 8, 3), number * 10, np.uint8))


def encoded(number):
    held = io.BytesIO()
    picture(number).save(held, "png")
    return held.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, numbers in {"cat": (1, 2), "ant": (3,), "bee": (4, 5)}.items():
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in numbers:
            picture(number).save(tmp_path / "root" / name / f"{number}.png")
    return tmp_path / "root"


def pixel(image):
    return np.asarray(image)[0, 0, 0] // 10


def test_a_folder_is_read_in_order_with_classes_by_alphabet(folder):
    data = PARTS["folder"].make(root=folder)
    assert len(data) == 5
    assert data.classes == ("ant", "bee", "cat")
    assert data.tasks == {"class": 3}
    assert [(pixel(data.image(i)), data.label(i)["class"]) for i in range(5)] == [
        (3, 0),
        (4, 1),
        (5, 1),
        (1, 2),
        (2, 2),
    ]


def test_the_index_is_kept_and_never_out_of_date(folder, monkeypatch):
    from sslzoo_datasets import folder as module
    from sslzoo_datasets.folder import cache_path

    assert len(PARTS["folder"].make(root=folder)) == 5
    place = cache_path(folder)
    assert len(json.loads(place.read_text())["files"]) == 5
    with monkeypatch.context() as patched:
        patched.setattr(module, "_walk", lambda *_: pytest.fail("the kept list was not used"))
        assert len(PARTS["folder"].make(root=folder)) == 5
    picture(9).save(folder / "cat" / "9.png")
    assert len(PARTS["folder"].make(root=folder)) == 6
    (folder / "dog").mkdir()
    picture(7).save(folder / "dog" / "7.png")
    assert PARTS["folder"].make(root=folder).tasks == {"class": 4}
    place.write_text("{torn")
    assert len(PARTS["folder"].make(root=folder)) == 7


def test_a_flat_folder_has_no_classes(tmp_path):
    picture(1).save(tmp_path / "a.png")
    data = PARTS["folder"].make(root=tmp_path)
    assert data.tasks == {}
    assert data.label(0) == {}


def test_a_broken_file_raises_when_read(folder):
    (folder / "ant" / "3.png").write_bytes(encoded(3)[:40])
    with pytest.raises((OSError, SyntaxError)):
        PARTS["folder"].make(root=folder).image(0)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"root: .*nowhere is not a folder"):
        PARTS["folder"].make(root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root: no images in"):
        PARTS["folder"].make(root=tmp_path)


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_tar_shards_are_read_by_number(tmp_path):
    for shard, numbers in enumerate(((1, 2), (3, 4, 5))):
        members = {}
        for number in numbers:
            members |= {f"{number:04}.png": encoded(number), f"{number:04}.cls": str(number % 3).encode()}
        tar_of(tmp_path / f"in-{shard:03}.tar", members)
    data = PARTS["shards"].make(files=tmp_path / "in-{000..001}.tar")
    assert [pixel(data.image(i)) for i in range(5)] == [1, 2, 3, 4, 5]
    assert [data.label(i)["class"] for i in range(5)] == [1, 2, 0, 1, 2]
    assert data.tasks == {"class": 3}
    json_only = {"a.jpg": encoded(1), "a.json": json.dumps({"label": 4}).encode()}
    tar_of(tmp_path / "j.tar", json_only)
    assert PARTS["shards"].make(files=tmp_path / "j.tar").label(0) == {"class": 4}
    with pytest.raises(ValueError, match="files: nothing matches"):
        PARTS["shards"].make(files=tmp_path / "none-*.tar")


def test_webdataset_reads_the_same_samples(tmp_path):
    import webdataset

    members = {}
    for number in (1, 2, 3):
        members |= {f"{number}.png": encoded(number), f"{number}.cls": str(number).encode()}
    tar_of(tmp_path / "x.tar", members)
    theirs = [sample["png"] for sample in webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)]
    data = PARTS["shards"].make(files=tmp_path / "x.tar")
    assert [pixel(Image.open(io.BytesIO(one)).convert("RGB")) for one in theirs] == [
        pixel(data.image(i)) for i in range(3)
    ]


@pytest.mark.parametrize("layout", ["struct", "bytes"])
def test_parquet_tables_are_read_by_number(tmp_path, layout):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for table, numbers in enumerate(((1, 2, 3), (4, 5))):
        images = [encoded(number) for number in numbers]
        column = [{"bytes": one, "path": None} for one in images] if layout == "struct" else images
        pq.write_table(
            pa.table({"image": column, "label": [n % 2 for n in numbers]}),
            tmp_path / f"{table}.parquet",
            row_group_size=2,
        )
    data = PARTS["parquet"].make(files=tmp_path / "*.parquet")
    assert [pixel(data.image(i)) for i in (4, 0, 3, 2, 1)] == [5, 1, 4, 3, 2]
    assert [data.label(i)["class"] for i in range(5)] == [1, 0, 1, 0, 1]
    assert data.tasks == {"class": 2}
    with pytest.raises(ValueError, match="no column 'picture'; it has image, label"):
        PARTS["parquet"].make(files=tmp_path / "*.parquet", image_column="picture")


def test_torchvision_by_name(tmp_path):
    with pytest.raises(ValueError, match="no data set 'CIFAR1'; did you mean CIFAR10"):
        PARTS["torchvision"].make(name="CIFAR1", root=tmp_path)
    with pytest.raises(ValueError, match="root: "):
        PARTS["torchvision"].make(name="CIFAR10", root=tmp_path)


def test_one_process_at_a_time_downloads(tmp_path, monkeypatch):
    inside, most = [], []

    class CIFAR10:
        targets, classes = [0, 1], ("a", "b")

        def __init__(self, root, train=True, download=False):
            inside.append(self)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(self)

        def __len__(self):
            return 2

    monkeypatch.setattr("torchvision.datasets.CIFAR10", CIFAR10)
    make = partial(PARTS["torchvision"].make, name="CIFAR10", root=tmp_path / "data", download=True)
    with ThreadPoolExecutor(4) as pool:
        found = [one.result() for one in [pool.submit(make) for _ in range(4)]]
    assert most == [1, 1, 1, 1]
    assert [one.tasks for one in found] == [{"class": 2}] * 4


def test_a_torchvision_set_on_disk_is_read(tmp_path):
    """CIFAR-10's own layout, written here with two images a batch."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    lists = {}
    for name in [one for one, _ in CIFAR10.train_list]:
        content = {"data": np.full((2, 3072), 40, np.uint8), "labels": [3, 7]}
        (base / name).write_bytes(pickle.dumps(content))
        lists[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(n) for n in range(10)]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "_check_integrity", lambda _self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        data = PARTS["torchvision"].make(name="CIFAR10", root=tmp_path)
    assert len(data) == 10
    assert data.label(1) == {"class": 7}
    assert data.tasks == {"class": 10}
    assert pixel(data.image(0)) == 4


@pytest.mark.parametrize(
    "told",
    ['{"files": ["gone.png"], "folders": {}}', '{"files": [1], "folders": []}', "[[[", "null", "", "[" * 100_000],
    ids=range(6),
)
def test_a_garbled_index_is_made_anew(folder, told):
    from sslzoo_datasets.folder import cache_path

    place = cache_path(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(told)
    assert len(PARTS["folder"].make(root=folder)) == 5
    known = json.loads(place.read_text())
    known["files"].append("zzz.png")
    place.write_text(json.dumps(known))
    assert len(PARTS["folder"].make(root=folder)) == 5


def test_an_unwritable_cache_only_costs_time(folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert len(PARTS["folder"].make(root=folder)) == 5


def test_hidden_folders_and_files_are_left_out(folder):
    for hidden in (".ipynb_checkpoints", "__MACOSX", "cat/.thumbnails"):
        (folder / hidden).mkdir()
        picture(9).save(folder / hidden / "9.png")
    picture(9).save(folder / "cat" / "._1.png")  # what a Mac leaves beside 1.png
    data = PARTS["folder"].make(root=folder)
    assert (len(data), data.classes) == (5, ("ant", "bee", "cat"))


def samples(*numbers, labels=True):
    members = {}
    for number in numbers:
        members[f"{number:04}.png"] = encoded(number)
        if labels:
            members[f"{number:04}.cls"] = str(number % 3).encode()
    return members


def test_what_is_called_an_image_and_is_no_file_is_left_out(folder):
    os.mkfifo(folder / "ant" / "pipe.png")
    (folder / "ant" / "gone.png").symlink_to("nowhere.png")
    data = PARTS["folder"].make(root=folder)
    assert [name for name in data.index.files if name.startswith("ant")] == ["ant/3.png", "ant/gone.png"]
    with pytest.raises(OSError, match=r"gone\.png"):
        data.image(data.index.files.index("ant/gone.png"))


def test_folders_without_end_are_told_and_not_walked(folder):
    for name in "one", "two", "three":  # each doubles the ways at every level
        (folder / "ant" / name).symlink_to("..")
    with pytest.raises(ValueError, match="root: .*ant/.* is a link to a folder that it lies in"):
        PARTS["folder"].make(root=folder)


def test_missing_shards_are_told(tmp_path):
    for shard in (0, 1, 3):
        tar_of(tmp_path / f"in-{shard:03}.tar", samples(1, 2))
    with pytest.raises(ValueError, match=r"files: 1 of 4 are missing: .*in-002.tar"):
        PARTS["shards"].make(files=tmp_path / "in-{000..003}.tar")
    with pytest.raises(ValueError, match="names more than 1,000,000 files"):
        PARTS["shards"].make(files=tmp_path / "{0..999}" / "in-{000000..2000}.tar")
    assert len(PARTS["shards"].make(files=tmp_path / "in-*.tar")) == 6
    for shard in (0, 2):
        tar_of(tmp_path / f"train-{shard:05}-of-00003.tar", samples(1))
    with pytest.raises(ValueError, match=r"files: 2 of 3 are here of .*train-...-of-00003"):
        PARTS["shards"].make(files=tmp_path / "train-*.tar")
    assert len(PARTS["shards"].make(files=tmp_path / "train-{00000,00002}-of-00003.tar")) == 2


@pytest.mark.parametrize(("damage", "says"), [("header", "cannot be read"), ("torn", "torn"), ("joined", "joined")])
def test_no_sample_of_a_damaged_shard_is_lost_without_a_word(tmp_path, damage, says):
    path = tmp_path / "a.tar"
    tar_of(path, samples(1, 2, 3))
    content = path.read_bytes()
    third = content.index(b"0003.")
    assert third % 512 == 0
    path.write_bytes(
        {
            "header": content[: third + 5] + b"?" + content[third + 6 :],
            "torn": content[:third],  # where a member ends: nothing is cut in two
            "joined": content + content.replace(b"000", b"009"),
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"files: .*a.tar is damaged: .*{says}"):
        PARTS["shards"].make(files=path)


def test_one_missing_label_is_told(tmp_path):
    members = samples(1, 2, 3)
    del members["0002.cls"]
    tar_of(tmp_path / "a.tar", members)
    with pytest.raises(
        ValueError, match=r"1 of 3 samples have neither .cls nor .json, the first of them 0002 in .*a.tar"
    ):
        PARTS["shards"].make(files=tmp_path / "a.tar")
    assert PARTS["shards"].make(files=tmp_path / "a.tar", label_key=None).tasks == {}
    tar_of(tmp_path / "b.tar", samples(1, 2, labels=False))
    assert PARTS["shards"].make(files=tmp_path / "b.tar").tasks == {}


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("cls", b"-1"),
        ("cls", b"cat"),
        ("cls", b"\xff\xfe"),
        ("cls", b"1.5"),
        ("json", b'{"label": -2}'),
        ("json", b'{"class": 3}'),
        ("json", b"[]"),
        ("json", b"{torn"),
        ("json", b'{"label": "cat"}'),
        ("json", b'{"label": 1e400}'),
        ("cls", b"999999999999"),
    ],
)
def test_labels_that_are_no_classes_are_told_with_their_place(tmp_path, ending, content):
    tar_of(tmp_path / "a.tar", {"0001.png": encoded(1), f"0001.{ending}": content})
    with pytest.raises(ValueError, match=rf"files: 0001.{ending} in .*a.tar holds .*a class from 0 on is wanted"):
        PARTS["shards"].make(files=tmp_path / "a.tar")


def test_files_that_are_no_tar_or_hold_a_sample_twice_are_told(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"files: .*a.tar is not an uncompressed tar file"):
        PARTS["shards"].make(files=tmp_path / "a.tar")
    tar_of(tmp_path / "c.tar", {"1.png": encoded(1)})
    (tmp_path / "c.tar").write_bytes(gzip.compress((tmp_path / "c.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"files: .*c.tar is not an uncompressed tar file"):
        PARTS["shards"].make(files=tmp_path / "c.tar")
    tar_of(tmp_path / "b.tar", {"1.png": encoded(1), "1.jpg": encoded(2)})
    with pytest.raises(ValueError, match=r"files: .*b.tar holds two files 'image' of the sample 1"):
        PARTS["shards"].make(files=tmp_path / "b.tar")


def tables(folder, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), folder / "a.parquet")
    return PARTS["parquet"].make(files=folder / "a.parquet")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": [1, 2]}, "image_column: 'image' of .* holds int64; encoded images are wanted"),
        ({"image": ["a", "b"]}, "image_column: 'image' of .* holds string"),
        ({"image": [{"path": "x"}]}, "image_column: 'image' of .* holds struct"),
        ({"image": [b"1"], "label": ["cat"]}, "label_column: 'label' of .* holds string; whole numbers are wanted"),
        ({"image": [b"1"], "label": [0.5]}, "label_column: 'label' of .* holds double"),
        ({"image": [b"1"] * 2, "label": [3, -1]}, "label_column: 'label' of .* holds -1; classes count from 0"),
        (
            {"image": [b"1"] * 2, "label": [3, 2**62]},
            "label_column: 'label' of .* holds 46.*; classes count from 0, below",
        ),
        ({"image": [b"1"] * 2, "label": [3, None]}, "label_column: 'label' of .* lacks 1 of 2 labels"),
    ],
)
def test_parquet_columns_of_other_types_are_told(tmp_path, columns, told):
    with pytest.raises(ValueError, match=told):
        tables(tmp_path, **columns)


def test_parquet_without_an_image_or_a_table(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(OSError, match="row 1 holds no image"):
        tables(tmp_path, image=[encoded(1), None]).image(1)
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"files: .*b.parquet is not a parquet table"):
        PARTS["parquet"].make(files=tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="files: no rows in"):
        PARTS["parquet"].make(files=tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": [b"1"], "label": [0]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="label_column: 1 of 2 tables have no column 'label'"):
        PARTS["parquet"].make(files=tmp_path / "{a,d}.parquet")


def test_a_split_that_is_neither_train_nor_test_is_told(tmp_path):
    with pytest.raises(ValueError, match="split: found 'trian'; CIFAR10 has train and test"):
        PARTS["torchvision"].make(name="CIFAR10", root=tmp_path, split="trian")
