"""Figures that are read again: a file that was damaged, edited or put in another's place is told, and left out."""

import json
import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner

from sslzoo import UserError
from sslzoo.cli import cli
from sslzoo.evaluate import bench, written
from sslzoo.plugins import catalogue
from sslzoo.recipe.recipe import load
from sslzoo.report import records, words

TOLD = {"run": "good", "step": 4, "network": "teacher", "run_seed": 0, "view": {"size": 32}}
FIGURES = {"trained": {"knn/count/top1": 40.0, "knn/count/loss": float("nan")}, "chance": {"count": 10.0}}


def _written(folder, figures=FIGURES, answers=None, **more):
    right = torch.tensor(answers or [True, False, True])
    return written.write(folder, figures, TOLD | more, {"trained/knn/count/correct": right})


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    path = _written(tmp_path)
    (one,), faults = written.read(tmp_path, "good", 0)
    assert not faults
    assert one.columns["trained"]["knn/count/top1"] == 40.0
    assert one.columns["trained"]["knn/count/loss"] != one.columns["trained"]["knn/count/loss"]  # not finite: nan
    assert one.correct("knn/count").tolist() == [True, False, True]
    assert one.correct("knn/shape") is None
    assert one.settings == {"view": {"size": 32}}
    told = json.loads(path.read_text())
    del told["crc32"]  # of an earlier version
    path.write_text(json.dumps(told))
    assert len(written.read(tmp_path, "good", 0)[0]) == 1


@pytest.mark.parametrize("damage", ["edited", "torn", "empty", "a list", "another seed", "another run", "dangling"])
def test_one_that_is_wrong_is_told_and_left_out(tmp_path, damage):
    path = _written(tmp_path)
    good = _written(tmp_path, step=5)
    text = path.read_text()
    if damage in ("another seed", "another run"):
        other = _written(tmp_path / "other", **({"run_seed": 1} if damage == "another seed" else {"run": "bad"}))
        text = other.read_text()
    texts = {"edited": text.replace("40.0", "90.0"), "torn": text[:-9], "empty": "", "a list": f"[{text}]"}
    path.write_text(texts.get(damage, text))
    if damage == "dangling":
        path.unlink()
        path.symlink_to("nowhere")
    found, (fault,) = written.read(tmp_path, "good", 0)
    assert [one.path for one in found] == [good]
    assert str(path) in fault
    assert ("of another run" in fault) is damage.startswith("another")


def test_answers_of_another_evaluation_are_not_taken_for_its_own(tmp_path):
    one, other = (_written(tmp_path, step=step).with_suffix(".safetensors") for step in (4, 5))
    shutil.copy(other, one)
    found = {one.step: one for one in written.read(tmp_path, "good", 0)[0]}
    assert found[4].correct("knn/count") is None
    assert found[5].correct("knn/count") is not None
    other.write_bytes(b"torn")
    assert found[5].correct("knn/count") is None


SHORT = ("run.steps=2", "run.batch=4", "run.workers=0", "run.monitor=0", "run.device=cpu", "data.length=16")
SHORT += ("evaluate.train.length=16", "evaluate.test.length=8", "evaluate.probes={knn: {use: knn, k: [3]}}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, probed at its end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    line = ["train", "tiny/ijepa", *(word for one in SHORT for word in ("--set", one)), "--out", str(folder)]
    told = CliRunner().invoke(cli, line, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return folder


def test_eval_reads_the_features_that_the_run_kept(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr("sslzoo.evaluate.bench.extract", lambda *_, **__: pytest.fail("they were kept"))
    told = CliRunner().invoke(cli, ["eval", str(tmp_path / "run"), "--untrained"], catch_exceptions=False)
    assert told.exit_code == 0, told.output


def test_a_page_says_which_figures_and_checkpoints_were_damaged(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (path,) = (tmp_path / "run" / "eval").glob("*.json")
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
    told = CliRunner().invoke(cli, ["report", str(tmp_path / "run")], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert f"warning: {path} is damaged" in told.output
    assert "Figures" not in (tmp_path / "run" / "report" / "index.html").read_text()
    assert records.read(run).evaluated


def test_of_several_evaluations_the_newest_counts_or_the_newest_that_answers_what_is_asked(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    recipe, installed = load(str(tmp_path / "run"))
    asked = bench.asked(recipe, installed)
    line = ["eval", str(tmp_path / "run"), "--untrained"]
    assert CliRunner().invoke(cli, [*line, "--set", "evaluate.layers=2"]).exit_code == 0
    other = records.read(tmp_path / "run").evaluated["teacher"]
    assert "means over patches of the last 2" in other.content["pooling"]
    wanted = records.read(tmp_path / "run", asked=asked).evaluated["teacher"]
    assert wanted.content["pooling"] == "summary"
    assert not other.answers(asked)
    assert wanted.answers(asked)
    assert not wanted.answers({**asked, "data": {**asked["data"], "test": {**asked["data"]["test"], "length": 9}}})
    assert CliRunner().invoke(cli, line).exit_code == 0  # the first again: it is the newest now
    assert records.read(tmp_path / "run").evaluated["teacher"].content["pooling"] == "summary"


def _changed(path, change):
    """The same evaluation as another version would have written it."""
    told = {key: value for key, value in json.loads(path.read_text()).items() if key != "crc32"}
    change(told)
    path.write_text(json.dumps(told))


def test_keys_of_later_versions_were_what_their_defaults_are_and_unlike_protocols_are_no_answer(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    asked = bench.asked(*load(str(tmp_path / "run")))
    (path,) = (tmp_path / "run" / "eval").glob("*.json")
    _changed(path, lambda told: [told["probes"]["knn"].pop(key) for key in ("temperature", "protocol")])
    found = records.read(tmp_path / "run", asked=asked).evaluated["teacher"]
    assert found.settings["probes"]["knn"] == asked["probes"]["knn"]
    _changed(path, lambda told: told["probes"]["knn"].update(temperature=0.1))
    assert not records.read(tmp_path / "run", asked=asked).evaluated
    _changed(path, lambda told: told["probes"]["knn"].pop("temperature"))
    columns = lambda told: told["figures"].values()  # noqa: E731
    _changed(path, lambda told: [one.pop(key) for one in columns(told) for key in [*one] if key.endswith("/k")])
    assert not records.read(tmp_path / "run", asked=asked).evaluated  # k was chosen on the test images
    old = records.read(tmp_path / "run").evaluated["teacher"]
    told = words.read_how(old, catalogue())
    assert "best on the test images" in told
    assert "knn (k [3]): weighted" in told  # its own setting, and no default


def test_a_probes_own_key_protocol_is_no_number_of_ours(tmp_path):
    text = "from sslzoo import hookimpl\n\nclass Mine:\n    def __init__(self, *, protocol: str = 'loo'):\n        pass\n\n"
    text += "    def __call__(self, train, test, seed):\n        return {}\n\n"
    text += '@hookimpl\ndef sslzoo_probes():\n    """mine"""\n    return {\'mine\': Mine}\n'
    (tmp_path / "mine.py").write_text(text)
    recipe = load("tiny/ijepa", ("evaluate.probes={mine: {use: mine}}",), (tmp_path / "mine.py",))
    assert bench.asked(*recipe)["probes"]["mine"]["protocol"] == "loo"


def test_runs_are_compared_by_the_newest_evaluation_that_all_have(run, tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        shutil.copytree(run, path)
        recipe = (path / "recipe.yaml").read_text()
        (path / "recipe.yaml").write_text(recipe.replace("clip: null", f"clip: {ord(path.name)}.0"))
    assert CliRunner().invoke(cli, ["eval", str(paths[1]), "--set", "evaluate.layers=2"]).exit_code == 0
    assert records.read(paths[1]).evaluated["teacher"].content["pooling"] != "summary"
    (a,), (b,) = records.by_recipe(paths).values()
    assert a.evaluated["teacher"].settings == b.evaluated["teacher"].settings
    shutil.rmtree(paths[0] / "eval")
    assert CliRunner().invoke(cli, ["eval", str(paths[0]), "--set", "evaluate.layers=1"]).exit_code == 0
    (a,), (b,) = records.by_recipe(paths).values()
    assert [one.evaluated["teacher"].content["pooling"][:27] for one in (a, b)] == ["means over patches of the l"] * 2
    assert a.evaluated["teacher"].settings != b.evaluated["teacher"].settings


def test_a_page_reads_what_a_run_recorded_once(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    read = []
    monkeypatch.setattr(written, "read", lambda *words, own=written.read: read.append(1) or own(*words))
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "run")], catch_exceptions=False).exit_code == 0
    assert len(read) == 1


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (7, "7"), (160, "160"), (999.6, "1 k"), (72_000, "72 k"), (999_999, "1 M"), (3e18, "3e+03 P")],
)
def test_a_number_is_told_with_three_digits_and_its_unit(value, told):
    assert words.number_told(value) == told


def test_of_two_teachers_the_first_is_the_teacher(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    tree = yaml.safe_load(recipe.read_text())
    tree["targets"]["wise"] = tree["targets"]["teacher"]
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    (path,) = (tmp_path / "run" / "eval").glob("*.json")
    told = json.loads(path.read_text())
    newer = {key: value for key, value in told.items() if key != "crc32"} | {
        "network": "wise",
        "time": told["time"] + 9,
    }
    (path.parent / "newer.json").write_text(json.dumps(newer))
    assert records.read(tmp_path / "run").evaluated["teacher"].network == "teacher"


def test_a_page_that_cannot_be_written_is_told(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "report")
    (tmp_path / "run" / "report").write_text("a note")
    told = CliRunner().invoke(cli, ["report", str(tmp_path / "run")])
    assert isinstance(told.exception, UserError)
    assert str(tmp_path / "run" / "report") in str(told.exception)
    assert (tmp_path / "run" / "report").read_text() == "a note"
