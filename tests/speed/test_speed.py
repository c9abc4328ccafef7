"""`sslzoo bench`: what it says of a step adds up, and agrees with what is known of the recipe."""

import itertools
import json
import time
from dataclasses import replace

import pytest
import torch

from sslzoo import speed
from sslzoo.cli import main
from sslzoo.errors import RunError
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.report import speed as report
from sslzoo.run.processes import World

SMALL = (
    "data.length=32",
    "data.cache=false",
    "run.batch=2",
    "encoder.depth=1",
    "predictor.depth=1",
    "targets.teacher.layers=1",
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two recipes in one run, and what was printed and written."""
    home = tmp_path_factory.mktemp("bench")
    words = ["bench", "tiny/ijepa", "--against", "tiny/ijepa", "--against-set", "run.batch=4", "--data", "real"]
    words += ["--steps", "2", "--rounds", "3", "--out", str(home / "out.json"), "--chart", str(home / "stages.svg")]
    words += [word for one in SMALL for word in ("--set", one)]
    printed = run(*words)
    return home, printed, [speed.read(one) for one in json.loads((home / "out.json").read_text())]


def run(*words, code=0):
    import io
    from contextlib import redirect_stderr, redirect_stdout

    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as left:
        main(list(words))
    assert (left.value.code or 0) == code, printed.getvalue()
    return printed.getvalue()


def test_stages_and_rounds_tell_the_same_time(measured):
    for one in measured[2]:
        assert one.steps == 6
        assert len(one.rounds) == 3
        assert set(one.stages) == set(speed.STAGES)
        assert all(
            one.stages[name] > 0 for name in ("wait", "targets", "forward", "loss", "backward", "optimizer", "EMA")
        )
        # Every round's time is that of its steps: the stages leave nothing out, and count nothing twice.
        whole = sum(2 * one.images / rate for rate in one.rounds)
        assert sum(one.stages.values()) * one.steps == pytest.approx(
            whole, rel=0.1
        )  # what is between them, on a busy machine
        assert one.slowest >= one.step > 0
        assert 0 < one.waited < 1


def test_the_second_recipe_has_its_own_settings_and_the_first_ones_arithmetic(measured):
    first, second = measured[2]
    assert (first.images, second.images) == (2, 4)
    recipe, installed = load("tiny/ijepa", SMALL)
    assert first.flops == check(recipe, installed).flops
    assert first.utilisation == pytest.approx(first.rate * first.flops / first.ceiling)
    assert first.memory is None, "one process, two recipes: its peak is nobody's own"


def test_the_table_fits_80_columns_and_tells_the_ratio(measured):
    home, printed, (first, second) = measured
    assert max(map(len, printed.splitlines())) <= 80
    median, best = speed.ratios(first, second)
    assert f"{median:.3f} times as fast as tiny/ijepa (2) (median); {best:.3f} (best)" in printed
    assert best == max(first.rounds) / max(second.rounds)
    assert "student's forward" in (home / "stages.svg").read_text() or "<svg" in (home / "stages.svg").read_text()


def test_ready_made_batches_show_masks_all_along_the_run(tmp_path):
    """They were all those of the last step, where a schedule may hide most."""
    changing = ["masks.image={use: random, hide: {linear: [0.25, 0.75]}}"]
    recipe, installed = load("tiny/ijepa", (*SMALL, *changing))
    timed = speed._Timed(recipe, installed, World(), tmp_path, real=False)
    seen = [next(timed.batches).groups["image"].mask.context.index.shape[1] for _ in range(speed.READY)]
    assert seen == [48, 40, 32, 24]  # of 64 patches


@pytest.mark.parametrize(("sets", "images"), [(("run.batch=8",), 4), (("run.batch=12", "run.micro=4"), 3)])
def test_a_step_is_the_micro_batch_that_a_run_on_these_processes_takes(tmp_path, monkeypatch, sets, images):
    """Each of two processes took the whole batch, or run.micro where it does not divide the rest."""
    monkeypatch.setattr(speed, "prepare", lambda method, *_: method)
    recipe, installed = load("tiny/ijepa", (*SMALL, *sets))
    assert speed._Timed(recipe, installed, World(size=2), tmp_path, real=False).images == images


def test_an_earlier_result_stands_beside(measured):
    home, _, (first, _) = measured
    words = [word for one in SMALL for word in ("--set", one)]
    printed = run(
        "bench", "tiny/ijepa", *words, "--steps", "2", "--rounds", "1", "--against", str(home / "out.json"), "--json"
    )
    alone, earlier = json.loads(printed)
    assert speed.read(earlier) == first
    assert alone["memory"] > 1e6
    assert alone["data"] == "ready"


def test_results_of_unlike_machines_have_no_ratio(measured):
    """An earlier result of a GPU was compared with a CPU without a word."""
    _, _, (one, other) = measured
    other = replace(other, device="NVIDIA H200", processes=8, threads=12, torch="2.11.0")
    told = report.table({"now": one, "then": other}, apart=True)
    assert f"now on cpu, {one.threads} CPU threads a process, torch {one.torch}" in told
    assert "then on 8 x NVIDIA H200, 12 CPU threads a process, torch 2.11.0" in told
    assert "times as fast" not in told
    assert "device (cpu, NVIDIA H200)" in told
    assert "images (2, 4)" in told
    alike = replace(one, torch="2.11.0", rounds=one.rounds[:1])
    told = report.table({"now": one, "then": alike}, apart=True)
    assert f"now is {one.rate / alike.rate:.3f} times as fast as then (median)" in told
    assert f"warning: they differ in\n  torch ({one.torch}, 2.11.0)" in told


def test_real_data_are_timed_as_their_loader_makes_them(tmp_path, monkeypatch):
    """What the workers had made ahead before a round was counted too: 46 images a second of a loader that makes 20."""
    from sslzoo_datasets.scenes import Scenes

    plain = Scenes.image
    monkeypatch.setattr(Scenes, "image", lambda self, i: (time.sleep(0.1), plain(self, i))[1])  # in the workers
    recipe, installed = load("tiny/ijepa", (*SMALL, "run.workers=2", "encoder.depth=1"))
    (found,) = speed.measure([(recipe, installed)], World(), real=True, steps=None, rounds=1)
    assert found.steps == 10
    assert found.rate < 1.4 * 2 / 0.1  # two workers, a tenth of a second an image
    assert found.waited > 0.3
    with pytest.raises(RunError, match="--steps 4: real data want 8 at least, for 2 loader workers"):
        speed.measure([(recipe, installed)], World(), real=True, steps=4, rounds=1)


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "nothing that `sslzoo bench --out` wrote" in run(
        "bench", "tiny/ijepa", "--against", str(tmp_path / "other.json"), code=2
    )


def test_a_stage_within_another_takes_its_time_from_it(monkeypatch):
    line, ticks = speed.Timeline(torch.device("cpu")), itertools.count()
    monkeypatch.setattr(line, "_now", lambda: next(ticks))
    line.mark()  # 0
    with line.stage("forward"):  # 1
        with line.stage("targets"):  # 2 to 3
            pass
        with line.stage("loss"):  # 4 to 5
            pass
    line.mark()  # 7; forward was left at 6
    assert line.read() == {"rest": 2, "forward": 3, "targets": 1, "loss": 1}
    assert line.read() == {}, "what was read is not read again"
