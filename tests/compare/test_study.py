"""Studies: what is held equal, what scales with a length, and what is refused."""

import io
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from made_up import TREE, record
from rich.console import Console

from sslzoo.cli import cli
from sslzoo.compare import budget, cells, evaluation, study
from sslzoo.compare.budget import Budget, Cost, Stretch, _longer_horizon, _scaled, steps_for
from sslzoo.compare.command import Asked, compare_runs, run_study
from sslzoo.errors import UserError
from sslzoo.progress import Progress
from sslzoo.recipe.recipe import load, resolve
from sslzoo.recipe.schedule import Schedule
from sslzoo.report import records
from sslzoo.run.folder import Folder
from sslzoo.run.state import InUse, State

SMALL = ["run.workers=0", "run.steps=40", "run.batch=8", "data.length=64", "data.cache=false"]
RANDOM = "masks.image={use: random, hide: 0.6}"
PLUGIN = """
import torch
from sslzoo import Mask, Patches, hookimpl

class Corner:
    \"\"\"Sees the first patch, guesses the last.\"\"\"

    ragged = False

    def __init__(self, *, where: int = 0) -> None:
        self.where = where

    def __call__(self, batch, grid, rng):
        return Mask(Patches(torch.zeros(batch, 1).long()), Patches(torch.ones(batch, 1, 1).long()))

@hookimpl
def sslzoo_masks():
    \"\"\"corner\"\"\"
    return {"corner": Corner}
"""


def write(tmp_path, **changes):
    keys = {"study": "trial", "base": "tiny/ijepa", "set": SMALL, "seeds": 2}
    keys |= {"variants": {"multiblock": [], "random": [RANDOM]}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(keys | changes))
    return path


def cost(batch=8, flops=100.0, own=40, seconds=0.5, patches=20.0):
    return Cost(batch, flops, images=64, own=own, seconds=seconds, patches=patches)


@pytest.mark.parametrize(
    ("equal", "wanted"), [("images", 20), ("steps", 40), ("flops", 10), ("tokens", 40), ("seconds", 80)]
)
def test_a_budget_holds_what_it_says(equal, wanted):
    ours, base = cost(batch=16, flops=200.0, seconds=0.25, patches=10.0), cost()
    assert steps_for(ours, base, Budget(equal=equal)) == wanted


def test_a_shorter_teacher_keeps_as_much_of_its_start():
    # The share of the starting weights that is left at the end stays what it was: that is what the horizon means.
    for factor in (0.1, 0.5, 3.0):
        kept = math.exp(1000 * math.log(0.996))
        assert math.exp(1000 * factor * math.log(_longer_horizon(0.996, factor))) == pytest.approx(kept, rel=0.15)


def test_durations_and_momentum_scale_with_the_length(tmp_path):
    warm = "optim.lr={warmup: {steps: 16, from: 0, to: 1.0e-3}}"
    path = write(tmp_path, budget={"equal": "flops", "length": "20 steps"}, variants={"multiblock": [warm]})
    (one,) = study.read(path).variants
    assert one.steps == 20
    lr = next(change for change in one.scaled if change.startswith("optim.lr="))
    assert "steps: 8," in lr  # 16, by half
    assert "targets.teacher.momentum={linear: [0.996, 1.0]}" in one.scaled  # 0.998: its horizon halves


def test_every_form_of_a_duration_scales_and_keeps_its_unit():
    half = Stretch(steps=0.5, epochs=0.25)
    for spec, wanted in (
        ({"linear": [0, 1], "over": "8 epochs"}, {"linear": [0, 1], "over": "2 epochs"}),
        ({"linear": [0, 1], "over": 9}, {"linear": [0, 1], "over": "4 steps"}),
        ({"piecewise": {0: 0, "1 epoch": 1}}, {"piecewise": {"0 steps": 0, "0.25 epochs": 1}}),
        (
            {"piecewise": {0: {"warmup": {"steps": 4, "from": 0, "to": 1}}, "20 steps": {"cosine": [1, 0]}}},
            {"piecewise": {"0 steps": {"warmup": {"steps": 2, "from": 0, "to": 1}}, "10 steps": {"cosine": [1, 0]}}},
        ),
        (
            {"warmup": {"epochs": 40, "from": 0, "to": 1}, "each": "epoch"},
            {"warmup": {"epochs": 10, "from": 0, "to": 1}, "each": "epoch"},
        ),
        ({"linear": [0.9, 1.0]}, {"linear": [0.9, 1.0]}),
        (0.5, 0.5),
    ):
        assert _scaled(spec, half) == wanted


def test_momentum_follows_inside_every_form():
    twice = Stretch(2.0, 2.0)
    assert _scaled({"warmup": {"steps": 4, "from": 0.8, "to": 0.9, "then": {"linear": 1.0}}}, twice, 2.0) == {
        "warmup": {"steps": 8, "from": 0.9, "to": 0.95, "then": {"linear": 1.0}}
    }
    assert _scaled({"piecewise": {0: 0.9, "4 steps": 0.98}}, twice, 2.0) == {
        "piecewise": {"0 steps": 0.95, "8 steps": 0.99}
    }


def test_with_another_batch_or_data_set_a_duration_is_the_same_share_of_the_images(tmp_path):
    warm = "optim.lr={warmup: {epochs: 1.5, from: 0, to: 1.0e-3}}"
    groups = 'optim.groups={"*.bias": {lr: {piecewise: {0: 0, 8 steps: 1}}}}'
    variants = {"base": [], "batch": ["run.batch=16"], "data": ["data.length=128"]}
    read = study.read(write(tmp_path, set=[*SMALL, warm, groups], variants=variants, seeds=1))
    shares = {}
    for cell in read.cells:
        run, images = cell.recipe.run, cell.recipe.data["length"]
        lr = Schedule.parse(cell.recipe.optim["lr"])
        frozen = cell.recipe.optim_keys.groups["*.bias"].lr
        steps = run.length(images // run.batch)
        at = [Progress(step, steps, images // run.batch) for step in range(steps)]
        rising = sum(lr(one) < 1e-3 for one in at) * run.batch
        shares[cell.variant] = (steps * run.batch, rising, sum(frozen(one) == 0 for one in at) * run.batch)
    assert set(shares.values()) == {(320, 96, 64)}  # images: of the run, of the warm-up, with biases frozen


def test_without_another_length_nothing_changes(tmp_path):
    read = study.read(write(tmp_path))
    assert {one.scaled for one in read.variants} == {()}
    assert [(cell.variant, cell.seed) for cell in read.cells] == [
        (v, s) for v in ("multiblock", "random") for s in (0, 1)
    ]
    assert [cell.recipe.run.seed for cell in read.cells] == [0, 1, 0, 1]
    assert len({cell.recipe.name for cell in read.cells}) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {"a": ["run.steps=7"]}}, "the budget sets how long"),
        ({"variants": {"a": ["mask.image=1"]}}, "did you mean masks"),
        ({"variants": {"a": [], "b": ["run.seed=7"]}}, "found run.seed=7; the study's key seeds"),
        ({"set": ["name=x"]}, "found name=x; a cell is called by its variant"),
        ({"variants": {"a": [], "b": [RANDOM], "c": ["run.batch=8"]}}, "the same recipe as a; nothing would differ"),
        ({"variants": {"a": [], "../b": []}}, "names a folder"),
        ({"baseline": "multibock"}, "did you mean multiblock"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"seeds": 0}, "at least 1"),
        ({"budget": {"equal": "epochs"}}, "budget"),
        ({"base": "tiny/ijpea"}, "did you mean tiny/ijepa"),
        ({"varients": {}}, "did you mean variants"),
        ({"study": "../x"}, "study"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        study.read(write(tmp_path, **changes))


def test_another_base_asks_for_another_method(tmp_path):
    read = study.read(write(tmp_path, variants={"ijepa": [], "mae": {"base": "tiny/mae"}}))
    assert "targets" in read.named()["mae"]
    assert "encoder" not in read.named()["mae"]


def test_shipped_studies_are_found_by_name_and_a_slip_is_told(tmp_path):
    assert study.find_study(Path("tiny/masks")).name == "masks.yaml"
    assert study.find_study(tmp_path) is None
    with pytest.raises(UserError, match="did you mean tiny/masks"):
        study.find_study(Path("tiny/mask"))


SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "studies").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_variant_of_a_shipped_study_is_a_recipe_and_differs_from_the_others(path):
    keys = study.Keys(**yaml.safe_load(path.read_text()))
    seen = []
    for name, given in keys.variants.items():
        base, own = (given.base, given.set) if isinstance(given, study.Own) else (keys.base, given)
        known = yaml.safe_load(resolve(*load(base, [*keys.set, *own, "name=one"])))
        assert known not in seen, f"{name} is no other than a variant before it"
        seen.append(known)


def test_single_runs_of_one_recipe_name_are_called_by_their_folders(tmp_path):
    for name, precision, seed in (("slow", "fp32", 0), ("fast", "bf16", 0), ("again", "fp32", 1)):
        (tmp_path / name).mkdir()
        tree = TREE | {"run": TREE["run"] | {"precision": precision, "seed": seed}}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert list(records.by_recipe([tmp_path / "slow", tmp_path / "fast"])) == ["slow", "fast"]
    found = records.by_recipe([tmp_path / "slow", tmp_path / "again", tmp_path / "fast"])
    assert {name: [one.seed for one in own] for name, own in found.items()} == {
        "precision=fp32": [0, 1],
        "precision=bf16": [0],
    }


def test_seeds_of_a_run_are_one_variant_however_they_were_told_and_probed(tmp_path):
    for name, seed, more in (("a", 0, {"workers": 0}), ("b", 1, {"workers": 4}), ("c", 0, {"batch": 32})):
        (tmp_path / name).mkdir()
        tree = TREE | {"run": TREE["run"] | more | {"seed": seed}, "evaluate": {"layers": seed}}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(tree))
    folders = [tmp_path / name for name in "abc"]
    assert [[one.seed for one in own] for own in records.by_recipe(folders).values()] == [[0, 1], [0]]
    tree["run"] |= {"batch": TREE["run"]["batch"], "workers": 4}
    (tmp_path / "c" / "recipe.yaml").write_text(
        yaml.safe_dump(tree)
    )  # a second run of seed 0: workers are the question
    found = records.by_recipe(folders)
    assert [[one.folder.name for one in own] for own in found.values()] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("words", "told"),
    [(["tiny/masks", "--baseline", "block"], "its own key baseline"), ([".", "--jobs", "2"], "for a study")],
)
def test_options_that_would_do_nothing_are_refused(words, told):
    found = CliRunner().invoke(cli, ["compare", *words])
    assert found.exit_code == 2
    assert told in found.output


def test_cells_run_as_many_at_a_time_as_asked_and_what_runs_is_saved_when_one_is_stopped(tmp_path, monkeypatch):
    read = study.read(write(tmp_path), tmp_path / "out")
    at_once, started, live, slots = [], [], [], []

    def start(cell, _study, jobs, slot):
        started.append((cell, jobs))
        words = "import time; time.sleep(0.3)" if len(started) < 4 else "raise SystemExit(3)"
        live.append(subprocess.Popen([sys.executable, "-c", words]))
        at_once.append(sum(one.poll() is None for one in live))
        slots.append(slot)
        return cells.Running(cell, live[-1], slot)

    monkeypatch.setattr(cells, "_start", start)
    monkeypatch.setattr(cells, "LOOK", 0.02)
    said = Console(file=io.StringIO(), width=200)
    assert cells.here(read, 3, said) == ["random, seed 1"]
    assert said.file.getvalue().startswith("4 of 4 cells to run, 3 at a time; `sslzoo status")
    assert [cell for cell, _ in started] == list(read.cells)
    assert max(at_once) == 3
    assert slots[:3] == [0, 1, 2]
    assert slots[3] in (0, 1, 2), "one that was left"
    assert {jobs for _, jobs in started} == {3}

    started.clear()
    live.clear()
    monkeypatch.setattr(cells.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(UserError, match="the same command goes on"):
        cells.here(read, 2, Console(quiet=True))
    assert [one.returncode for one in live] == [-signal.SIGTERM] * 2  # told to save, and waited for


def test_a_cell_of_several_has_its_share_of_the_cores(tmp_path, monkeypatch):
    read = study.read(write(tmp_path), tmp_path / "out")
    (cell, *_) = read.cells
    cell.folder.mkdir(parents=True)
    given = []
    monkeypatch.setattr(cells.subprocess, "Popen", lambda *_, env, **__: given.append(env.get("OMP_NUM_THREADS")))
    monkeypatch.setattr(cells.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for jobs in (1, 3, 99):
        cells._start(cell, read, jobs, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    cells._start(cell, read, 3, 0)
    assert given == [None, "5", "1", "2"]


@pytest.mark.parametrize(
    ("own", "there", "jobs", "wanted"),
    [
        (None, 4, 3, ["0", "1", "2"]),
        ("6,GPU-aa,7", 3, 4, ["6", "GPU-aa", "7", "6"]),
        ("5", 1, 3, ["5", "5", "5"]),  # one is shared
        (None, 0, 2, [None, None]),
        ("", 0, 2, ["", ""]),
        ("2,3", 2, 1, ["2,3"]),
    ],
)
def test_cells_at_a_time_have_a_gpu_each(tmp_path, monkeypatch, own, there, jobs, wanted):
    read = study.read(write(tmp_path), tmp_path / "out")
    (cell, *_) = read.cells
    cell.folder.mkdir(parents=True)
    given = []
    monkeypatch.setattr(cells.subprocess, "Popen", lambda *_, env, **__: given.append(env.get("CUDA_VISIBLE_DEVICES")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if own is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
    for slot in range(jobs):
        cells._start(cell, read, jobs, slot)
    assert given == wanted


def began(read):
    """Every cell of a study as if it had begun."""
    for cell in cells.prepare(read):
        State(cell.folder).begin(0)


def test_cells_that_have_not_begun_are_written_anew_and_the_others_tell_of_an_edit(tmp_path):
    out = tmp_path / "out"
    first, *waiting = cells.prepare(study.read(write(tmp_path), out))
    State(first.folder).begin(0)
    edited = study.read(write(tmp_path, variants={"multiblock": [], "random": ["optim.clip=1.0"]}), out)
    assert [cell.variant for cell in cells.prepare(edited)] == ["multiblock"] * 2 + ["random"] * 2
    clips = [yaml.safe_load((one.folder / "recipe.yaml").read_text())["optim"]["clip"] for one in (first, *waiting)]
    assert clips == [None, None, 1.0, 1.0]
    with pytest.raises(
        UserError, match=r"edited after 1 of its 4 cells(.|\n)*compare .*out/\*/seed-\*` compares what has run"
    ):
        cells.prepare(study.read(write(tmp_path, set=[*SMALL, "run.batch=16"]), out))


def test_a_cell_that_waits_for_its_turn_keeps_its_recipe(tmp_path):
    """One that was queued on the cluster would have run by the recipe of the edited study."""
    out = tmp_path / "out"
    first, second, *_ = cells.prepare(study.read(write(tmp_path), out))
    recipes = [(one.folder / "recipe.yaml").read_text() for one in (first, second)]
    edited = write(tmp_path, set=[*SMALL, "run.batch=16"]), out
    with State(first.folder).locked(), pytest.raises(InUse):
        cells.prepare(study.read(*edited))
    State(second.folder).write_launch({})
    with pytest.raises(UserError, match=r"edited after 1 of its 4 cells(.|\n)*in multiblock/seed-1"):
        cells.prepare(study.read(*edited))
    assert [(one.folder / "recipe.yaml").read_text() for one in (first, second)] == recipes
    assert len(cells.prepare(study.read(write(tmp_path), out))) == 4  # the same study goes on


def test_an_edited_study_is_told_once_for_each_change_with_its_cells(tmp_path):
    out = tmp_path / "out"
    began(study.read(write(tmp_path), out))
    edited = write(
        tmp_path, set=[*SMALL, "run.batch=16"], variants={"multiblock": ["optim.clip=1.0"], "random": [RANDOM]}
    )
    with pytest.raises(UserError) as told:
        cells.prepare(study.read(edited, out))
    text = str(told.value)
    assert "edited after 4 of its 4 cells" in text
    assert text.count("run.batch: 8 there, 16 asked for") == 2  # with clip, and without
    assert "in multiblock/seed-0, multiblock/seed-1\n" in text
    assert "optim.clip" in text
    with pytest.raises(UserError, match="in random/seed-0, random/seed-1\n"):
        cells.prepare(study.read(edited, out))


def test_no_page_shows_figures_under_an_edited_study(tmp_path, monkeypatch):
    from sslzoo.compare import command

    out = tmp_path / "out"
    began(study.read(write(tmp_path), out))
    monkeypatch.setattr(command, "_tell_study", lambda *_words: True)
    assert command.page_of_study(write(tmp_path), command.Asked(out))
    with pytest.raises(UserError, match="the study, or a recipe it names, was edited after"):
        command.page_of_study(write(tmp_path, set=["optim.lr=0.5"]), command.Asked(out))


def test_a_plugin_edited_after_some_of_a_study_ran_is_refused(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    path = write(tmp_path, plugins=["mine.py"], variants={"a": ["masks.image={use: corner}"]})
    began(study.read(path, tmp_path / "out"))
    plugin.write_text(PLUGIN + "# another\n")
    with pytest.raises(UserError, match=r"(?s)edited after 2 of its 2 cells.*plugin .*mine.* was .* and is"):
        cells.prepare(study.read(path, tmp_path / "out"))


def test_networks_that_a_variant_does_not_have_are_refused_before_anything_runs(tmp_path):
    path = write(tmp_path, variants={"mae": {"base": "tiny/mae"}}, networks="teacher", seeds=1)
    with pytest.raises(UserError, match=r"variant mae cannot be evaluated: .*networks: teacher.*it has: student"):
        evaluation.refuse_unfit(study.read(path, tmp_path / "out"), data=False)


def test_a_budget_of_time_is_measured_once(tmp_path, monkeypatch):
    times = iter([0.5, 0.25, 0.9, 0.9])
    monkeypatch.setattr("sslzoo.compare.budget._measure", lambda *_: next(times))
    path = write(tmp_path, budget={"equal": "seconds"}, seeds=1)
    steps = [[one.steps for one in study.read(path, tmp_path / "out").variants] for _ in range(2)]
    assert steps == [[40, 80], [40, 80]]
    monkeypatch.setattr("sslzoo.compare.budget._measure", None)
    assert [one.steps for one in study.read(path, tmp_path / "out", measure=False).variants] == [40, 80]
    with pytest.raises(UserError, match="those of a step of this variant are not measured yet"):
        study.read(path, tmp_path / "else", measure=False)
    monkeypatch.setattr("sslzoo.compare.budget._measure", lambda *_: next(times))
    (tmp_path / "out" / "seconds.json").write_text("torn")
    assert [one.steps for one in study.read(path, tmp_path / "out").variants] == [40, 40]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seeds": True}, "found true"),
        ({"budget": {"equal": "images", "length": 0}}, "found 0"),
        ({"set": [*SMALL, "data.length=4"]}, "batch"),
        ({"set": [*SMALL[:1], *SMALL[2:], "run.epochs=0.01", "optim.lr=1.0e-3"]}, "so that there is a step"),
    ],
)
def test_studies_without_a_step_or_with_words_for_numbers_are_refused(tmp_path, wrong, told):
    with pytest.raises(UserError, match=told):
        study.read(write(tmp_path, **wrong), tmp_path / "out")


def test_what_a_variant_names_in_quotes_is_its_question(tmp_path):
    asked = [RANDOM, 'optim.groups."*.bias".weight_decay=0.1']
    read = study.read(write(tmp_path, variants={"multiblock": [], "random": asked}, seeds=1), tmp_path / "out")
    assert "optim.groups.*.bias.weight_decay" in read.named()["random"]


def test_the_time_of_a_step_is_that_of_images_that_were_made_before(monkeypatch):
    """The variant measured first rendered the images of all, and was given half the steps it should have had."""
    recipe, installed = load("tiny/ijepa", ())
    seconds = iter([1.0, 0.25])

    def train(recipe, _installed, _flow, out, _world):
        each = next(seconds)
        for step in range(1, recipe.run.steps + 1):
            line = {"step": step, "seconds": 9.0 * step, "device_seconds": each * step}
            Folder(out).metrics.write(line)

    monkeypatch.setattr("sslzoo.train.train", train)
    assert budget._measure(recipe, installed, None) == 0.25


def test_patch_tokens_are_counted_over_the_whole_run():
    one = record(lines=tuple({"step": n, "context_patches": seen} for n, seen in enumerate((10, 20, 60))))
    assert one.tokens == pytest.approx(one.images * 30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluate": {"layers": 9}}, "evaluate"),
        ({"set": [*SMALL, "evaluate.layers=9"]}, r"the variant multiblock cannot be evaluated:(.|\n)*has 4 blocks"),
        ({"variants": {"a": [], "b": ["evaluate.network=techer"]}}, r"the variant b cannot be evaluated:(.|\n)*techer"),
        ({"set": [*SMALL, "evaluate=null"]}, "needs a section evaluate"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_told_before_anything_runs(tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(cells, "here", lambda *_: pytest.fail("it began to train"))
    with pytest.raises(UserError, match=words):
        run_study(write(tmp_path, **changes), Asked(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_neither_a_run_nor_a_study_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no file is called '.*away.yaml'"):
        study.find_study(tmp_path / "away.yaml")
    cells.prepare(study.read(write(tmp_path), tmp_path / "out"))
    with pytest.raises(UserError, match=r"holds 4: name those, such as .*/out/multiblock/\*; or the YAML file"):
        compare_runs([tmp_path / "out"], Asked())
