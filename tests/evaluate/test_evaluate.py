"""Features of a frozen encoder, the figures at the end of a run, and what is drawn and logged of it."""

import json
import shutil
import time

import pytest
import torch
from click.testing import CliRunner

from sslzoo import RunError, UserError
from sslzoo.cli import cli
from sslzoo.evaluate import written
from sslzoo.evaluate.bench import asked, bench, restored, untrained
from sslzoo.evaluate.during import VOTE_EVERY, During
from sslzoo.evaluate.features import extract
from sslzoo.evaluate.figures import finish, probe
from sslzoo.recipe.build import build, make
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.report import page, records, words
from sslzoo.report.page import write
from sslzoo.run.data import ready
from sslzoo.run.networks import evaluated_encoder
from sslzoo.run.processes import World
from sslzoo.run.stop import Stop
from sslzoo.train import Watch, train

CPU = torch.device("cpu")
SETS = ("run.steps=4", "run.batch=8", "run.workers=0", "run.monitor=8", "run.log_every=2", "run.save_every=2")
SETS += ("data.length=40", "evaluate.train.length=60", "evaluate.test.length=40")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of a shipped recipe: its folder, recipe, catalogue and trained parts."""
    out = tmp_path_factory.mktemp("run")
    recipe, installed = load("tiny/ijepa", SETS)
    method = train(recipe, installed, check(recipe, installed), out, World())
    return out, recipe, installed, method


def test_features_come_in_order_and_do_not_depend_on_batch_or_workers(run):
    _, recipe, installed, method = run
    opened = bench(recipe, installed)
    encoder = evaluated_encoder(method)
    whole = extract(encoder, opened.test, opened.view, device=CPU, batch=40)
    parts_of = extract(encoder, opened.test, opened.view, device=CPU, batch=7, workers=1)
    assert torch.allclose(whole.x, parts_of.x, atol=1e-5)
    for task in opened.test.tasks:
        assert whole.labels[task].tolist() == [opened.test.label(i)[task] for i in range(40)]
    one = ready(opened.view, opened.view(opened.test.image(5))[0])
    with torch.no_grad():
        assert torch.allclose(encoder(one[None]).summary[0], whole.x[5], atol=1e-5)


def test_features_that_are_no_numbers_make_no_figure(run):
    _, recipe, installed, _ = run
    opened, encoder = bench(recipe, installed), untrained(recipe, installed).student.encoder

    def spoil(_module, _input, out):
        out.summary[3:5] = float("nan")

    hook = encoder.register_forward_hook(spoil)
    with pytest.raises(RunError, match="features of image 3, and of 1 more of the 40 beside it are not finite"):
        extract(encoder, opened.test, opened.view, device=CPU, batch=40)
    hook.remove()
    with torch.no_grad():
        encoder.norm.bias[0] = float("inf")
    broken = untrained(recipe, installed)
    broken.student.encoder.load_state_dict(encoder.state_dict())
    with pytest.raises(RunError, match=r"the trained encoder \(student\) cannot be probed: its features of image 0"):
        probe(opened, recipe, installed, {"trained": broken}, 1, "student", run[0] / "no", CPU, lambda _: None)


def test_layers_give_means_over_patches_side_by_side(run):
    _, recipe, installed, method = run
    opened = bench(recipe, installed)
    encoder = evaluated_encoder(method)
    found = extract(encoder, opened.test, opened.view, device=CPU, layers=2).x
    assert found.shape == (40, 2 * encoder.width)
    pixels = ready(opened.view, opened.view(opened.test.image(0))[0][None])
    with torch.no_grad():
        layers = encoder(pixels, None, 2).layers
    assert torch.allclose(found[0], torch.cat([one.mean(1)[0] for one in layers]), atol=1e-5)


def test_extraction_leaves_the_mode_of_the_encoder(run):
    _, recipe, installed, method = run
    opened = bench(recipe, installed)
    for mode in (True, False):
        encoder = evaluated_encoder(method).train(mode)
        extract(encoder, opened.test, opened.view, device=CPU)
        assert encoder.training is mode


def test_figures_stand_beside_the_untrained_encoder_and_chance(run):
    out, recipe, installed, method = run
    figures = finish(recipe, installed, method, 4, out, CPU, lambda _: None)
    assert set(figures) == {"trained", "untrained", "chance"}
    assert set(figures["trained"]) == set(figures["untrained"])
    assert {"knn/count/top1", "linear/distance/top1"} <= set(figures["trained"])
    (path,) = (out / "eval").glob("4-teacher-*.json")
    told = json.loads(path.read_text())
    assert told["figures"] == figures
    labels = [bench(recipe, installed).test.label(i)["shape"] for i in range(40)]
    assert figures["chance"]["shape"] == pytest.approx(max(map(labels.count, set(labels))) / 40 * 100)
    text = write(recipe, installed, method, 4, out).read_text()
    assert 'class="sortable"' in text
    assert "ijepa-tiny, seed 0, 4 steps" in text
    assert "the same encoder untrained, seed 0" in text
    assert "Figures of the teacher" in text
    (found,), faults = written.read(out, "ijepa-tiny", 0)
    assert not faults
    assert written.chosen([found], 4, None)[found.network].columns == figures
    assert written.chosen([found], 2, None) == {}


def test_a_checkpoint_restores_the_encoder_that_was_trained(run):
    out, recipe, installed, method = run
    for step, same in ((4, True), (2, False)):
        back, steps = restored(recipe, installed, out, step)
        assert steps == step
        pairs = zip(evaluated_encoder(back).parameters(), evaluated_encoder(method).parameters(), strict=True)
        assert all(one.equal(other) for one, other in pairs) is same
    with pytest.raises(RunError, match=r"no checkpoint of step 3; there is: \[2, 4\]"):
        restored(recipe, installed, out, 3)


def test_the_untrained_encoder_is_the_one_training_started_from(run):
    _, recipe, installed, _ = run
    one, other = (evaluated_encoder(untrained(recipe, installed)) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    start = build(recipe, installed)[0].student.encoder
    assert all(a.equal(b) for a, b in zip(one.parameters(), start.parameters(), strict=True))


def test_networks_are_chosen_by_name(run):
    method = run[3]
    assert evaluated_encoder(method) is method.targets["teacher"].encoder
    assert evaluated_encoder(method, "student") is method.student.encoder
    with pytest.raises(RunError, match="there is: teacher, student"):
        evaluated_encoder(method, "techer")


def test_data_without_labels_cannot_be_probed(run):
    _, recipe, installed, method = run
    opened = bench(recipe, installed)

    class Bare:
        tasks = ()

        def __len__(self):
            return 4

    with pytest.raises(RunError, match="no labels"):
        extract(evaluated_encoder(method), Bare(), opened.view, device=CPU)


def test_tensorboard_reads_back_what_metrics_say(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run[0]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    log = EventAccumulator(str(out / "tensorboard"))
    log.Reload()
    assert set(log.Tags()["scalars"]) == set().union(*lines) - {"step"}
    assert [event.step for event in log.Scalars("loss")] == [line["step"] for line in lines]
    assert [event.value for event in log.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_run_tells_all_that_is_promised(run):
    line = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[-1])
    promised = "step epoch loss lr weight_decay grad_norm rankme images_per_second data_wait context_share/image target_share/image"
    assert set(promised.split()) <= set(line)
    assert any("momentum" in name for name in line)
    assert any(name.endswith("target_std") for name in line)


def test_a_run_is_told_by_the_evaluation_that_its_own_recipe_asks_for(run, tmp_path):
    out, recipe, installed, _ = run
    shutil.copytree(out, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "report"))
    own = asked(recipe, installed)
    spec = {"train": {"images": 60}, "test": {"images": 40}}
    for made_at, many in enumerate((40, 20)):  # the newer one is another's
        data = {side: own["data"][side] | spec[side] for side in spec}
        data["test"] |= {"length": many, "images": many}
        about = {
            "run": recipe.name,
            "run_seed": 0,
            "step": 4,
            "network": "teacher",
            **own,
            "data": data,
            "time": made_at,
        }
        figures = {name: {"knn/count/top1": float(many)} for name in ("trained", "untrained")}
        written.write(tmp_path / "run", figures, about, {})
    found = records.own(tmp_path / "run")
    assert found.figures == {"teacher": {"knn/count/top1": 40.0}}
    (table,) = page._tables(found, recipe, installed)
    assert "learned from 60 images of scenes (split train, length 60" in table.note
    assert "tested on 40 images" in table.note
    assert "weighted k-NN" in table.note
    assert "not the settings of the run's own recipe" not in table.note
    (tmp_path / "run" / "eval" / found.evaluated["teacher"].path.name).unlink()
    (table,) = page._tables(records.own(tmp_path / "run"), recipe, installed)
    assert "tested on 20 images" in table.note
    assert "not the settings of the run's own recipe" in table.note
    made = dict(words.made(found))
    assert made["training data"].startswith("scenes (split train, length 40")
    assert {"arithmetic", "time", "machine", "versions", "commit"} <= made.keys()


def test_a_view_and_probe_come_from_the_recipe(run):
    _, recipe, installed, _ = run
    assert set(bench(recipe, installed, ("knn",)).probes) == {"knn"}
    assert make(installed, "views", recipe.evaluate.view).size == (64, 64)


def test_a_run_is_probed_while_it_goes_on(run, tmp_path):
    _, _, _, method = run
    recipe, installed = load("tiny/ijepa", (*SETS, "evaluate.every=2 steps", "evaluate.images=30", "run.log_every=1"))
    during = During(recipe, installed, CPU)
    assert (len(during.bench.train), len(during.bench.test)) == (30, 30)
    found = during(method)
    tasks = set(bench(recipe, installed).test.tasks)
    assert set(found) == {f"probe/knn/{task}{end}" for task in tasks for end in ("", "/untrained")}
    same = during(untrained(recipe, installed))
    assert all(same[f"probe/knn/{task}"] == same[f"probe/knn/{task}/untrained"] for task in tasks)
    asked = []
    flow = check(recipe, installed)
    train(recipe, installed, flow, tmp_path, World(), Watch(probe=lambda one: asked.append(one) or {"probe/x": 1.0}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "probe/x" in line] == [2, 4]
    assert len(asked) == 2


def test_a_probe_during_the_run_is_left_out_when_others_would_wait_in_vain(run, monkeypatch):
    """By a wish to stop, and where the other processes of a run would take this one for lost."""
    recipe, installed = load("tiny/ijepa", (*SETS, "evaluate.every=2 steps", "evaluate.images=30"))
    method, stop, said = run[3], Stop(), []
    during = During(recipe, installed, CPU, stop=stop, most=300.0, say=said.append)
    seconds, read = iter(range(0, 10**6, 11)), []
    image = type(during.bench.train).image
    monkeypatch.setattr(type(during.bench.train), "image", lambda *given: read.append(1) or image(*given))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    assert set(during(method)) == {f"probe/{name}/untrained" for name in during.start}
    assert len(read) == 28
    assert "after 300 seconds it was not done" in said[0]
    stop.asked = "SIGTERM"
    during(method)
    assert len(read) == 29
    assert "there was SIGTERM" in said[1]
    votes = []
    other = lambda votes_of_one: votes.append(votes_of_one) or votes_of_one  # noqa: E731
    monkeypatch.setattr("sslzoo.evaluate.during.all_sum", other)
    together = During(recipe, installed, CPU, together=True, say=said.append)
    assert len(together(method)) == 2 * len(during.start)
    assert len(votes) == 2 * (2 * 30 // VOTE_EVERY)
    monkeypatch.setattr("sslzoo.evaluate.during.all_sum", lambda mine: mine + 1.0)
    assert together(method) == {f"probe/{name}/untrained": value for name, value in together.start.items()}
    assert "there was a signal to another process" in said[2], "one rank alone must not leave"


def test_report_writes_the_page_of_a_run_and_refuses_what_is_none(run, tmp_path):
    out = run[0]
    done = CliRunner().invoke(cli, ["report", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Health: " in (out / "report" / "index.html").read_text()
    assert (out / "report" / "predictions.svg").is_file()
    for given, told in (([str(tmp_path)], "no run"), (["tiny/masks", "--out", str(tmp_path)], "nothing of the study")):
        with pytest.raises(UserError, match=told):
            CliRunner().invoke(cli, ["report", *given], catch_exceptions=False)
