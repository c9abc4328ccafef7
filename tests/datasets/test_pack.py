"""Do packed images come back as they were, whoever reads them, and however often packing was killed?"""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sslzoo_datasets import pack
from sslzoo_datasets.command import command

from sslzoo import UserError, catalogue

PARTS = catalogue().parts["datasets"]
SETTINGS = pack.Settings(side=32, shard=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(number, height=48, width=64):
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(rows / 9 + number), 128 + 90 * np.cos(columns / 7 - number), rows + columns]
    return Image.fromarray(np.stack(waves, 2).astype(np.uint8))


@pytest.fixture
def root(tmp_path):
    for number in range(11):
        path = tmp_path / "root" / ("ant", "bee", "cat")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path, quality=95)
    picture(20, 20, 30).save(tmp_path / "root" / "ant" / "small.jpg")
    picture(21, 20, 30).save(tmp_path / "root" / "bee" / "small.png")
    torn = (tmp_path / "root" / "cat" / "2.jpg").read_bytes()
    (tmp_path / "root" / "cat" / "torn.jpg").write_bytes(torn[: len(torn) // 2])
    return tmp_path / "root"


def run(*words, workers=1):
    settings = ["--side", "32", "--shard", "4", "--workers", str(workers)]
    return CliRunner().invoke(command, ["pack", *map(str, words), *settings])


def content(out):
    return {path.name: path.read_bytes() for path in out.glob("*.tar")}


def test_two_processes_write_the_bytes_of_one(root, tmp_path):
    for workers in (1, 2):
        done = run(root, tmp_path / str(workers), workers=workers)
        assert done.exit_code == 0, done.output
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert len(content(tmp_path / "1")) == 4


def test_a_folder_is_packed_and_read_back(root, tmp_path):
    told = run(root, tmp_path / "out")
    assert told.exit_code == 0, told.output
    assert "13 images in 4 shards" in told.output
    assert "1 damaged" in told.output
    source, found = PARTS["folder"].make(root=root), PARTS["shards"].make(files=tmp_path / "out" / "*.tar")
    assert found.class_names["class"] == ["ant", "bee", "cat"]
    assert found.tasks == {"class": 3}
    kept = [i for i in range(len(source)) if "torn" not in source.index.files[i]]
    assert len(found) == len(kept) == 13
    for n, i in enumerate(kept):
        assert found.label(n) == source.label(i)
        before, now = source.image(i).convert("RGB"), found.image(n)
        assert min(now.size) == min(32, min(before.size))
        wanted = np.asarray(before.resize(now.size, Image.Resampling.BICUBIC), float)
        if "small" in source.index.files[i]:
            assert np.array_equal(np.asarray(now), wanted)
        assert np.abs(np.asarray(now) - wanted).mean() < 3  # JPEG of quality 95, colors at half the resolution
    small = root / "ant" / "small.jpg"
    assert any(small.read_bytes() in shard for shard in content(tmp_path / "out").values())


def test_webdataset_reads_the_shards(root, tmp_path):
    import webdataset

    run(root, tmp_path / "out")
    found = PARTS["shards"].make(files=tmp_path / "out" / "*.tar")
    paths = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    assert [one["cls"] for one in theirs] == [found.label(i)["class"] for i in range(len(found))]
    assert [int(one["__key__"]) for one in theirs] == [i for i in range(14) if i != 13]
    for i, one in enumerate(theirs):
        image = one.get("jpg", one.get("png"))
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(found.image(i)))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_packing_that_was_killed_ends_with_the_same_bytes(root, tmp_path, after):
    run(root, tmp_path / "whole")
    data, out = pack.opened(root), tmp_path / "out"
    for name, numbers in pack.shards_of(len(data), 4)[:after]:
        known = pack.begin(out, data, SETTINGS)
        row = pack.write(data, SETTINGS, out, (name, numbers))
        with (out / "pack.jsonl").open("a") as log:
            log.write(("\n" if known else "") + json.dumps(row) + "\n")
    pack.begin(out, data, SETTINGS)
    (out / f"{pack.shards_of(len(data), 4)[after][0]}.77.writing").write_bytes(b"half a shard")
    with (out / "pack.jsonl").open("a") as log:
        log.write('{"shard": "0000')  # half a line
    told = run(root, out)
    assert told.exit_code == 0, told.output
    assert "13 images in 4 shards" in told.output
    assert content(out) == content(tmp_path / "whole")
    assert not list(out.glob("*.writing"))
    assert ("goes on" in told.output) == (after > 0)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert "13 images in 4 shards" in run(root, out).output
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == before


def test_tar_and_parquet_are_packed_too(root, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    run(root, tmp_path / "out")
    again = run(tmp_path / "out" / "*.tar", tmp_path / "again")
    assert "13 images in 4 shards" in again.output, again.output
    images = [path.read_bytes() for path in sorted((root / "bee").glob("*.jpg"))]
    pq.write_table(pa.table({"image": images, "label": [1] * len(images)}), tmp_path / "a.parquet")
    assert f"{len(images)} images in 1 shards" in run(tmp_path / "a.parquet", tmp_path / "table").output
    assert PARTS["shards"].make(files=tmp_path / "table" / "*.tar").label(0) == {"class": 1}


def test_other_settings_or_another_folder_are_refused(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    with pytest.raises(UserError, match="another packing:\n    quality: 95 then, 80 now\n"):
        pack.begin(out, pack.opened(root), pack.Settings(32, 80, 4))
    with pytest.raises(UserError, match="holds no packing"):
        pack.begin(root, pack.opened(root), SETTINGS)
    with pytest.raises(UserError, match=r"a folder of images is wanted, or a pattern of .tar or .parquet files"):
        pack.opened(tmp_path / "nothing.zip")


def test_a_torn_plan_is_told(root, tmp_path):
    run(root, tmp_path / "out")
    (tmp_path / "out" / "pack.json").write_text('{"side": 3')
    with pytest.raises(UserError, match=r"pack.json is damaged"):
        pack.begin(tmp_path / "out", pack.opened(root), SETTINGS)


def test_a_disk_that_takes_no_shard_is_told(root, tmp_path, monkeypatch):
    """A packing told its traceback."""
    data, out = pack.opened(root), tmp_path / "out"
    pack.begin(out, data, SETTINGS)
    shard = pack.shards_of(len(data), 4)[0]
    (out / shard[0]).mkdir()  # as root, who may write anywhere
    with pytest.raises(UserError, match=f"{shard[0]} could not be written"):
        pack.write(data, SETTINGS, out, shard)
    assert not list(out.glob("*.writing"))


def test_a_missing_shard_is_told(root, tmp_path):
    run(root, tmp_path / "out")
    next((tmp_path / "out").glob("000001-*.tar")).unlink()
    with pytest.raises(ValueError, match="3 of 4 are here"):
        PARTS["shards"].make(files=tmp_path / "out" / "*.tar")


def test_names_of_classes_that_are_no_list_are_told(root, tmp_path):
    run(root, tmp_path / "out")
    (tmp_path / "out" / "classes.json").write_text('{"ant": 0}')
    with pytest.raises(ValueError, match="should hold a list of the classes' names"):
        PARTS["shards"].make(files=tmp_path / "out" / "*.tar")
