"""Does an evaluation fit its run before it, and tell afterwards what its figures depend on?"""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from sslzoo import RecipeError, UserError
from sslzoo.cli import cli
from sslzoo.compare.evaluation import evaluate
from sslzoo.compare.study import Cell
from sslzoo.evaluate.bench import bench, matched
from sslzoo.evaluate.rehearse import _labels, rehearse
from sslzoo.evaluate.written import write
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.report.page import write as write_page
from sslzoo.run.metrics import rankme
from sslzoo.run.processes import World
from sslzoo.run.state import State
from sslzoo.train import train

SETS = ("run.steps=2", "run.batch=4", "run.workers=0", "run.monitor=4", "run.save_every=1", "data.length=4")
SETS += ("evaluate.train.length=12", "evaluate.test.length=6", "evaluate.probes={knn: {use: knn}}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on four training images."""
    out = tmp_path_factory.mktemp("run")
    recipe, installed = load("tiny/ijepa", SETS)
    return out, recipe, installed, train(recipe, installed, check(recipe, installed), out, World())


class Named:
    """Labels by the names of their classes."""

    def __init__(self, names, told, tasks=None):
        self.names, self.told = names, told
        self.tasks = {"class": len(names)} if tasks is None else tasks
        self.class_names = {"class": names}

    def __len__(self):
        return len(self.told)

    def label(self, i):
        return {"class": self.names.index(self.told[i])}


def test_classes_are_numbered_by_their_names():
    problems, remarks = [], []
    train_set = Named(("ant", "bee", "cat"), ("ant", "bee", "cat"))
    test_set = matched(train_set, Named(("ant", "cat"), ("cat", "ant", "cat")), problems, remarks)
    assert [test_set.label(i)["class"] for i in range(3)] == [2, 0, 2]
    assert test_set.tasks == {"class": 3}
    assert (problems, remarks) == ([], ["1 of 3 classes of the task class are in evaluate.train only: bee"])
    same = Named(("ant", "bee", "cat"), ("ant",))
    assert matched(train_set, same, problems, remarks) is same


@pytest.mark.parametrize(
    ("test_set", "told"),
    [
        (Named(("ant", "dog"), ("dog",)), "1 of its 2 classes .* not in evaluate.train, .* could be right: dog"),
        (Named(("ant",), ("ant",), {}), "no labels to probe"),
        (Named(("ant",), ()), "no images"),
        (Named(("ant",), ("ant",), {"kind": 1}), "its tasks are kind; those of evaluate.train are class"),
        (type("Bare", (Named,), {})((), ("ant",), {"class": 4}), "it has 4 classes of the task class, .* has 3"),
    ],
)
def test_what_could_never_be_right_is_a_problem(test_set, told):
    problems = []
    matched(Named(("ant", "bee", "cat"), ("ant",)), test_set, problems, [])
    assert [problem.place for problem in problems] == ["evaluate.test"]
    assert re.search(told, problems[0].message)


@pytest.mark.parametrize(
    ("sets", "place", "told"),
    [
        (("evaluate.network=techer",), "evaluate.network", "there is: teacher, student"),
        (("evaluate.layers=99",), "evaluate.layers", "found 99; the encoder has"),
        (("evaluate.view.size=60",), "evaluate.view", "60"),
        (("evaluate.train={use: folder, root: /nowhere}",), "evaluate.train", "is not a folder"),
    ],
)
def test_what_would_fail_at_the_end_is_told_before_the_start(sets, place, told):
    recipe, installed = load("tiny/ijepa", (*SETS, *sets))
    with pytest.raises(RecipeError) as error:
        rehearse(recipe, installed)
    assert [problem.place for problem in error.value.problems] == [place]
    assert told in error.value.problems[0].message
    if not place.endswith(("train", "test")):
        with pytest.raises(RecipeError):
            rehearse(recipe, installed, data=False)


CLUMSY = """
from sslzoo import hookimpl
from sslzoo_vit import ViT

class Clumsy:
    def check(self, encoder):
        encoder.nothing

    def __call__(self, train, test, seed):
        return {"kind/top1": 25.0}

class Gridless(ViT):
    def grid(self, size):
        return size[0] // self.nothing, 1

@hookimpl
def sslzoo_probes():
    return {"clumsy": Clumsy}

@hookimpl
def sslzoo_encoders():
    return {"gridless": Gridless}
"""


@pytest.mark.parametrize(
    ("sets", "place"),
    [
        ("evaluate.probes={one: {use: clumsy}}", "evaluate.probes.one"),
        ("encoder.use=gridless", "evaluate.view"),
    ],
)
def test_a_plugins_own_mistake_is_told_with_its_line(tmp_path, sets, place):
    file = tmp_path / "clumsy.py"
    file.write_text(CLUMSY)
    recipe, installed = load("tiny/ijepa", (*SETS, sets), [file])
    with pytest.raises(RecipeError) as error:
        rehearse(recipe, installed, data=False)
    (problem,) = error.value.problems
    assert problem.place == place
    assert "object has no attribute 'nothing'" in problem.message
    assert f"in {file}, line " in problem.message


@pytest.mark.parametrize(
    ("last", "told"), [({"kind": 4}, "has the label 4 .* 0 to 3"), ({}, "has no label in the task")]
)
def test_a_wrong_label_is_told_before_the_run_wherever_it_is(last, told):
    data = Named(("a",), ("a",) * 100, {"kind": 4})
    data.label = lambda i: {"kind": 3} if i < 99 else last
    (problem,) = _labels(data, "evaluate.train")
    assert problem.place == "evaluate.train"
    assert re.search(f"image 99 {told}", problem.message)
    data.label = lambda i: {"kind": 3}
    assert _labels(data, "evaluate.train") == []


def test_all_problems_come_at_once():
    sets = ("evaluate.network=techer", "evaluate.train={use: folder, root: /nowhere}")
    recipe, installed = load("tiny/ijepa", (*SETS, *sets, "evaluate.test={use: folder, root: /nowhere}"))
    with pytest.raises(RecipeError) as error:
        rehearse(recipe, installed)
    wanted = ["evaluate.network", "evaluate.test", "evaluate.train"]
    assert sorted(problem.place for problem in error.value.problems) == wanted


def test_four_training_images_are_enough_for_a_page(run):
    out, recipe, installed, method = run
    page = write_page(recipe, installed, method, 2, out)
    assert {path.stem for path in (out / "report").glob("*.svg")} >= {"curves", "masks", "features"}
    assert "Not compared with the same encoder untrained" in page.read_text()


def test_an_evaluation_tells_what_its_figures_depend_on_and_replaces_no_other(run):
    out = run[0]
    first = CliRunner().invoke(cli, ["eval", str(out)], catch_exceptions=False)
    assert first.exit_code == 0
    assert "the encoder of step-000000002.safetensors" in first.output
    (path,) = (out / "eval").glob("*.json")
    assert path.name.startswith("2-teacher-")
    told = json.loads(path.read_text())
    assert told["network"] == "teacher"
    assert (told["step"], told["seed"], told["pooling"]) == (2, 0, "summary")
    assert told["data"]["train"]["images"] == 12
    assert len(told["data"]["test"]["fingerprint"]) == 16
    assert told["probes"]["knn"]["k"] == [10, 20, 100, 200]
    assert {"sslzoo", "torch", "plugin probes"} <= set(told["versions"])
    before = path.read_text()
    for more in (["--set", "evaluate.layers=1"], ["--network", "student"], ["--step", "1"], []):
        assert CliRunner().invoke(cli, ["eval", str(out), *more], catch_exceptions=False).exit_code == 0
    assert len(list((out / "eval").glob("*.json"))) == 4  # the same one again is the same file
    again = json.loads(path.read_text())
    changed = {key for key, value in json.loads(before).items() if again.pop(key) != value} | set(again)
    assert changed == {"time", "crc32"}  # made later


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--set", "run.seed=5"], "trained with other settings:\n    run.seed: 0 there, 5 asked for"),
        (["--set", "encoder.width=48"], "encoder.width: 96 there, 48 asked for"),
        (["--set", "evaluate.view.size=60"], "evaluate.view\n    an image of 60 x 60 does not split"),
        (["--network", ""], "no network is called ''"),
    ],
)
def test_an_evaluation_that_does_not_fit_the_run_is_refused(run, more, told):
    answer = CliRunner().invoke(cli, ["eval", str(run[0]), *more])
    assert isinstance(answer.exception, UserError)
    assert told in str(answer.exception)


@pytest.mark.parametrize(("began", "able"), [("bf16", False), ("fp32", True)])
def test_a_run_is_evaluated_in_the_precision_that_it_chose(run, tmp_path, monkeypatch, began, able):
    """Not in what this machine would choose, nor in fp32 because nothing was settled."""
    out = tmp_path / "run"
    shutil.copytree(run[0], out, ignore=shutil.ignore_patterns("eval"))
    resolved = (out / "recipe.yaml").read_text()
    (out / "recipe.yaml").write_text(re.sub(r"precision: \w+", f"precision: {began}", resolved))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    recipe, installed = load(str(out), ("run.precision=auto",))
    assert bench(recipe, installed, folder=out).bf16 == (began == "bf16")
    told = CliRunner().invoke(cli, ["eval", str(out), "--set", "run.precision=auto", "--probe", "knn"])
    assert told.exit_code == 0, told.output
    assert f"{began}, as this run began" in told.stderr
    State(out).tell("done", step=2)
    cell = Cell("one", 0, out, recipe, installed)
    study = SimpleNamespace(cells=[cell], keys=SimpleNamespace(networks="student"), features=tmp_path)
    evaluate(study, Console(quiet=True))
    found = [json.loads(path.read_text()) for path in (out / "eval").glob("*.json")]
    assert {(one["network"], one["precision"]) for one in found} == {("teacher", began), ("student", began)}


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    told = CliRunner().invoke(cli, ["eval", str(tmp_path / "run")], catch_exceptions=False)
    assert "warning: " in told.stderr
    assert "step-000000002.safetensors" in told.stderr
    assert "the encoder of step-000000001.safetensors" in told.stderr
    assert list((tmp_path / "run" / "eval").glob("1-teacher-*.json"))


def test_the_split_of_a_probe_follows_a_seed_of_its_own(run):
    for seed in (0, 3):
        recipe, installed = load("tiny/ijepa", (*SETS, "run.seed=5", f"evaluate.seed={seed}"))
        assert bench(recipe, installed).settings.seed == seed


def test_figures_that_are_no_numbers_are_null_and_names_stay_in_the_folder(tmp_path):
    path = write(tmp_path, {"x": {"a": float("nan")}}, {"step": 1, "network": "../a b"}, {})
    assert path.parent == tmp_path / "eval"
    assert json.loads(path.read_text())["figures"] == {"x": {"a": None}}


def test_rankme_of_what_is_not_finite_is_nan():
    for bad in (float("nan"), float("inf")):
        x = torch.randn(8, 4)
        x[2, 1] = bad
        assert rankme(x).isnan()
