"""A run's encoder from Python: the one that was trained, as `eval` reads it; and the pixels it wants."""

import re
from pathlib import Path

import pytest
import torch

import sslzoo
from sslzoo import PluginError, RunError, UserError
from sslzoo.evaluate.bench import bench
from sslzoo.evaluate.features import extract
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run.processes import World
from sslzoo.train import train

ROOT = Path(__file__).parents[2]
SETS = ("run.steps=2", "run.batch=8", "run.workers=0", "run.monitor=0", "run.save_every=1", "run.keep=5")
SETS += ("data.length=24", "evaluate.train.length=20", "evaluate.test.length=20")


def trained(out, name, *sets):
    recipe, installed = load(name, (*SETS, *sets))
    return recipe, installed, train(recipe, installed, check(recipe, installed), out, World())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ijepa-tiny"
    return (out, *trained(out, "tiny/ijepa"))


def same(one, other):
    return all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_encoder_says_what_eval_reads(run):
    out, recipe, installed, method = run
    opened = bench(recipe, installed)
    encoder, view = sslzoo.load_encoder(out), sslzoo.load_view(out)
    assert same(encoder, method.targets["teacher"].encoder)
    assert not any(module.training for module in encoder.modules())
    assert not any(one.requires_grad for one in encoder.parameters())
    pixels = torch.stack([view(opened.test.image(i)) for i in range(20)])
    features = extract(encoder, opened.test, opened.view, device=torch.device("cpu"))
    assert torch.allclose(encoder(pixels).summary, features.x, atol=1e-6)


def test_networks_and_steps_are_chosen(run):
    out, _, _, method = run
    assert same(sslzoo.load_encoder(str(out), network="student"), method.student.encoder)
    assert not same(sslzoo.load_encoder(out, "student", step=1), method.student.encoder)
    with pytest.raises(RunError, match="no network is called 'techer'; there is: teacher, student"):
        sslzoo.load_encoder(out, "techer")
    with pytest.raises(RunError, match=r"no checkpoint of step 7; there is: \[1, 2\]"):
        sslzoo.load_encoder(out, step=7)
    with pytest.raises(UserError, match="did you mean"):
        sslzoo.load_encoder(out.with_name("ijepa-tyni"))


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(run, tmp_path):
    out, _, _, method = run
    home = tmp_path / "run"
    (home / "checkpoints").mkdir(parents=True)
    (home / "recipe.yaml").write_text((out / "recipe.yaml").read_text())
    with pytest.raises(RunError, match="has no checkpoint yet"):
        sslzoo.load_encoder(home)
    for path in (out / "checkpoints").iterdir():
        whole = path.read_bytes()
        (home / "checkpoints" / path.name).write_bytes(whole[: len(whole) // 2] if "2" in path.stem else whole)
    with pytest.warns(UserWarning, match="damaged"):
        assert not same(sslzoo.load_encoder(home, "student"), method.student.encoder)


def test_a_run_without_a_teacher_or_a_section_evaluate(tmp_path):
    trained(tmp_path, "tiny/mae", "evaluate=null")
    assert sslzoo.load_encoder(tmp_path).width > 0
    with pytest.raises(RunError, match="no network is called 'teacher'; there is: student"):
        sslzoo.load_encoder(tmp_path, network="teacher")
    with pytest.raises(RunError, match="no section evaluate"):
        sslzoo.load_view(tmp_path)


def test_a_run_folder_is_no_plugin_file(run):
    for given in (str(run[0]), run[0], [run[0]]):
        with pytest.raises(PluginError, match=r"sslzoo\.load_encoder\("):
            sslzoo.load(given)
    with pytest.raises(PluginError, match=r"a list of plugin files is wanted: \['mine.py'\]"):
        sslzoo.catalogue("mine.py")


def test_the_example_of_the_page_runs(run, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "evaluate.md").read_text()
    code = re.search(r"```python\n(import sslzoo.*?)```", page, flags=re.S)[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ijepa-tiny").symlink_to(run[0])
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (90, 70), "teal").save(name)
    names = {}
    exec(code, names)
    assert names["features"].shape == (2, names["encoder"].width)
