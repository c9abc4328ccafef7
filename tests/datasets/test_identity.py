"""Is a data set that changed between two starts noticed? And images that nobody can read?"""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo import Free, RunError, catalogue
from sslzoo.cli.options import allow_changed_data
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.recipe.signature import keys_of
from sslzoo.run.folder import Folder
from sslzoo.run.identity import identity
from sslzoo.run.processes import World
from sslzoo.train import opened, train

PARTS = catalogue().parts["datasets"]
SHORT = ("run.batch=4", "run.workers=0", "run.monitor=4", "run.save_every=2")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def root(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "root" / name / f"{number}.png")
    return tmp_path / "root"


def run(root, out, *more):
    sets = (f"data={{use: folder, root: {root}}}", "evaluate=null", *SHORT, *more)
    recipe, installed = load("tiny/ijepa", sets)
    return train(recipe, installed, check(recipe, installed), out, World())


def test_identity_tells_lists_apart_and_not_where_they_lie(root, tmp_path):
    first = identity(PARTS["folder"].make(root=root))
    assert first["images"] == 8
    assert first["tasks"] == {"class": 2}
    root.rename(tmp_path / "moved")
    assert identity(PARTS["folder"].make(root=tmp_path / "moved")) == first
    (tmp_path / "moved" / "ant" / "3.png").rename(tmp_path / "moved" / "ant" / "4.png")
    other = identity(PARTS["folder"].make(root=tmp_path / "moved"))
    assert other["images"] == 8
    assert other["fingerprint"] != first["fingerprint"]


def test_identity_of_every_other_data_set(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def shard(*numbers):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for number in numbers:
                info = tarfile.TarInfo(f"{number}.png")
                info.size = 4
                tar.addfile(info, io.BytesIO(b"1234"))
        return identity(PARTS["shards"].make(files=tmp_path / "a.tar"))

    def table(*labels):
        pq.write_table(pa.table({"image": [b"1"] * len(labels), "label": labels}), tmp_path / "a.parquet")
        return identity(PARTS["parquet"].make(files=tmp_path / "a.parquet"))

    assert shard(1, 2) == shard(1, 2) != shard(1, 3)
    assert table(0, 1, 1) == table(0, 1, 1) != table(1, 0, 1)
    scenes = [identity(PARTS["scenes"].make(length=9, size=8, seed=seed)) for seed in (0, 0, 1)]
    assert scenes[0] == scenes[1] != scenes[2]


def test_a_label_outside_its_classes_is_told():
    class Wrong:
        def __init__(self):
            self.tasks = {"class": 3}

        def __len__(self):
            return 5

        def label(self, i):
            return {"class": i - 1}

    with pytest.raises(RunError, match="image 0 has the label -1 in the task class, which has classes 0 to 2"):
        identity(Wrong())


def test_a_run_notices_that_its_data_changed(root, tmp_path):
    out = tmp_path / "run"
    run(root, out, "run.steps=2")
    (root / "ant" / "0.png").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"images: 8 then, 7 now\n.*fingerprint: .*\n.*--allow-changed-data"):
        run(root, out, "run.steps=2")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    allow_changed_data(out, True)
    run(root, out, "run.steps=2")
    run(root, out, "run.steps=2")  # and is known from now on
    known = [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]
    assert [one.get("images") for one in known] == [8, None, 7]


def test_a_word_of_the_data_that_is_gone_is_told_at_a_resume(tmp_path):
    said = []
    Folder(tmp_path).note_data({"images": 3, "fingerprint": "a"}, 4, said.append)
    assert "data.jsonl is gone" in said[0]


def test_a_run_goes_on_where_keys_differ_that_are_declared_free(root, tmp_path):
    """Each free key changed at a resume: the run goes on, and what it computes is the same, bit for bit."""
    free = {
        k for part in PARTS.values() for k, key in keys_of(part.make).model_fields.items() if Free() in key.metadata
    }
    assert free == {"root", "files", "download", "cache"}  # the second and third lie where the first does
    (tmp_path / "moved").symlink_to(root)
    scenes = "data={{use: scenes, length: 8, size: 64, cache: {}}}"
    words = ["run.milestones=1", "run.log_every=1", "run.device=cpu", "run.unreadable=0.5", "run.monitor=3"]
    words += ["run.keep=9", "run.monitor_every=1", "run.save_every=1"]
    for name, before, after in (
        ("folder", [], [f"data.root={tmp_path / 'moved'}", "run.workers=1", *words]),
        ("scenes", [scenes.format("true")], [scenes.format("false")]),
    ):
        broken, whole = tmp_path / name, tmp_path / f"{name}-whole"
        unbroken = run(root, whole, "run.steps=3", *before).state_dict()
        shutil.copytree(whole, broken)
        max((broken / "checkpoints").iterdir()).unlink()  # as if killed after step 2
        resumed = run(root, broken, "run.steps=3", *after).state_dict()
        assert all(torch.equal(resumed[key], unbroken[key]) for key in unbroken)


def test_masks_that_depend_on_their_batch_keep_it_at_a_resume(tmp_path):
    """Masks of `multiblock-legacy` are cut to the shortest of those they are drawn with."""
    folder, legacy = Folder(tmp_path / "run"), "masks.image={use: multiblock-legacy, min_keep: 0}"

    def found(ranks, *sets):
        recipe, installed = load("tiny/ijepa", ("data.length=8", "run.batch=4", legacy, *sets))
        return opened(recipe, installed, folder, World(size=ranks))[2]

    first = found(1)
    folder.path.mkdir()
    folder.note_data(first, 0, print)
    assert found(1) == found(2, "run.batch=8", "run.micro=4") == first  # the same four at a time
    for ranks, sets in ((2, ()), (1, ("run.micro=2",))):
        with pytest.raises(RunError, match=r"images masked together \(run.batch over processes.*4 then, 2 now"):
            found(ranks, *sets)


def test_a_torn_word_of_the_data_is_written_anew(tmp_path):
    folder = Folder(tmp_path)
    folder.forget_data()
    assert not list(tmp_path.iterdir())
    (tmp_path / "data.jsonl").write_text('{"ima')
    found = {"images": 3, "fingerprint": "a"}
    for _ in range(2):
        folder.recognize(found)
        folder.note_data(found, 0, print)
    assert folder._data() == found
    assert len((tmp_path / "data.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_that_nobody_can_read_is_told_without_a_traceback(root, tmp_path, workers):
    for path in root.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(RunError) as told:
        run(root, tmp_path / "run", "run.steps=2", f"run.workers={workers}", "run.monitor=0")
    assert str(told.value).startswith("16 images in a row could not be read; the last: image")
    assert "Traceback" not in str(told.value)
