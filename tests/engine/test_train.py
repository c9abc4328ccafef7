"""Runs of toy methods through the unchanged engine: alone and in pairs, broken and unbroken."""

import json
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from driven import HERE, drive, losses, weights
from toy_recipes import METHODS

from sslzoo import Mask, Patches, RecipeError, RunError
from sslzoo.recipe.build import build
from sslzoo.recipe.fit import check
from sslzoo.recipe.recipe import load
from sslzoo.run import checkpoint, data, processes
from sslzoo.run.folder import Folder
from sslzoo.run.loader import deaf
from sslzoo.run.metrics import collect, mask_shares
from sslzoo.run.processes import World
from sslzoo.step import moments, weighed
from sslzoo.train import Watch, train


def run(recipe, out, *sets):
    """Trains in this process; returns the run folder."""
    read, catalogue = load(str(recipe), sets)
    train(read, catalogue, check(read, catalogue), Path(out), World())
    return Path(out)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gap(one, other):
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Every toy method trained ten steps by one process, by two, by two that share one copy, by two such pairs."""
    from toy_recipes import write

    folder = tmp_path_factory.mktemp("pairs")
    recipes = [write(folder, method) for method in METHODS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSLZOO_PLUGINS", "optimizers")
        for ranks, shard in ((1, 1), (2, 1), (2, 2), (4, 2)):
            done = drive(folder / f"by{ranks}-{shard}", *recipes, "--", f"run.shard={shard}", ranks=ranks)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.two_ranks
@pytest.mark.parametrize("many", ["2-1", "2-2", "4-2"], ids=["copies", "sharded", "sharded copies"])
@pytest.mark.parametrize("method", METHODS)
def test_several_ranks_equal_one_process(pairs, method, many):
    one, two = (pairs / f"by{ranks}" / f"toy-{method}" for ranks in ("1-1", many))
    assert gap(weights(one), weights(two)) < 1e-5
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert len(losses(one)) == 10
    assert all(map(math.isfinite, losses(one).values()))


def test_the_loss_of_every_method_moves(pairs):
    for method in METHODS:
        found = losses(pairs / "by1-1" / f"toy-{method}")
        assert found[1] != found[10]


@pytest.mark.parametrize("method", ["jepa", "data2vec"])
def test_accumulation_is_exact(tmp_path, toy, method):
    recipe = toy(method)
    whole = run(recipe, tmp_path / "whole")
    method = run(recipe, tmp_path / "parts", "run.micro=4")
    assert gap(weights(whole), weights(method)) < 1e-6
    told = [Folder(tmp_path / name).metrics.read()[0] for name in ("whole", "parts")]
    for key in [key for key in told[0] if key.endswith("_std")]:  # of all rows of the step: they were means of micros'
        assert told[0][key] == pytest.approx(told[1][key], rel=1e-5)


def test_workers_change_nothing(tmp_path, toy):
    recipe = toy("ibot")
    assert same(weights(run(recipe, tmp_path / "a")), weights(run(recipe, tmp_path / "b", "run.workers=2")))


def test_a_seed_repeats_and_another_differs(tmp_path, toy):
    recipe = toy("jepa")
    first = weights(run(recipe, tmp_path / "a"))
    assert same(first, weights(run(recipe, tmp_path / "b")))
    assert not same(first, weights(run(recipe, tmp_path / "c", "run.seed=1")))


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_run_that_stops_goes_on_as_if_unbroken(tmp_path, toy, stop, monkeypatch):
    recipe = toy("ibot")
    whole = run(recipe, tmp_path / "whole")
    from sslzoo.run import optim

    real, steps = optim.step, iter(range(100))

    def dies(*words):
        if next(steps) == stop:
            raise KeyboardInterrupt
        real(*words)

    monkeypatch.setattr(optim, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "broken", "run.save_every=2")
    monkeypatch.setattr(optim, "step", real)
    broken = run(recipe, tmp_path / "broken")
    assert same(weights(whole), weights(broken))
    assert losses(whole) == losses(broken)


class AtOnce(threading.Thread):
    """A thread that is done when it has started."""

    def start(self):
        super().start()
        self.join()


@pytest.mark.parametrize("fails", [False, True])
def test_a_save_is_told_at_the_next_step_and_its_failure_too(tmp_path, toy, monkeypatch, fails):
    monkeypatch.setattr(threading, "Thread", AtOnce)
    told = []
    watch = Watch(
        show=lambda at, _: told.append(f"step {at.step + 1}"), saved=lambda step, _: told.append(f"saved {step}")
    )
    read, catalogue = load(str(toy("jepa")), ["run.steps=4", "run.save_every=2", "run.log_every=1"])

    def full(*_):
        raise OSError(28, "No space left on device")

    if fails:
        monkeypatch.setattr(checkpoint.tensorfile, "write", full)
    with pytest.raises(OSError, match="No space left") if fails else nullcontext():
        train(read, catalogue, check(read, catalogue), tmp_path / "run", World(), watch)
    assert told == ["step 1", "step 2", *([] if fails else ["saved 2", "step 3", "step 4", "saved 4"])]


def test_ranks_that_see_other_data_do_not_start(tmp_path, toy, monkeypatch):
    """Such as a copy on one node's disk that is not whole."""
    read, catalogue = load(str(toy("jepa")))
    other = lambda what, _world: [what, ("n2", re.sub(r"images \d+", "images 7", what[1]))]  # noqa: E731
    monkeypatch.setattr(processes, "gather_objects", other)
    with pytest.raises(
        RunError, match=r"do not see the same training data, so none starts:\n.*\n +rank 1 on n2: images 7,"
    ):
        train(read, catalogue, check(read, catalogue), tmp_path / "run", World(size=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_at_ten_random_moments_equals_unbroken(tmp_path, toy):
    recipe = toy("ibot")
    sets = ("--", "run.steps=400", "run.save_every=1", "run.log_every=1", "run.keep=3", "run.monitor=0")
    assert drive(tmp_path / "whole", recipe, *sets).returncode == 0
    moments = random.Random(0)
    command = [sys.executable, str(HERE / "drive.py"), str(tmp_path / "killed"), str(recipe), *sets]
    killed = during_save = 0
    folder = tmp_path / "killed" / "toy-ibot"
    while killed < 10:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = Folder(folder).metrics.read()
        while process.poll() is None and len(Folder(folder).metrics.read()) <= len(before):
            time.sleep(0.02)  # let it get somewhere
        time.sleep(moments.uniform(0, 0.3))
        if killed % 2:  # every other time: in the middle of a save
            waited = time.monotonic()
            while process.poll() is None and not list(folder.glob("checkpoints/*.writing")):
                assert time.monotonic() - waited < 30
            during_save += 1
        assert process.poll() is None, process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert during_save == 5
    assert drive(tmp_path / "killed", recipe, *sets).returncode == 0
    assert same(weights(tmp_path / "whole" / "toy-ibot"), weights(folder))
    assert losses(tmp_path / "whole" / "toy-ibot") == losses(folder)


def test_a_damaged_newest_checkpoint_costs_only_the_steps_after_the_one_before(tmp_path, toy):
    recipe = toy("jepa")
    whole = weights(run(recipe, tmp_path / "whole"))
    out = run(recipe, tmp_path / "run", "run.save_every=4")
    newest = sorted(Folder(out).checkpoints.iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-5])
    said = []
    read, catalogue = load(str(recipe), ())
    train(read, catalogue, check(read, catalogue), out, World(), Watch(said.append))
    assert any("damaged" in line for line in said)
    assert any("step-000000008" in line for line in said)
    assert same(whole, weights(out))


def test_milestones_are_saved_where_no_other_save_falls(tmp_path, toy):
    out = run(toy("jepa"), tmp_path / "run", "run.save_every=4", "run.milestones=3", "run.keep=1")
    assert checkpoint.steps(Folder(out).checkpoints) == [3, 6, 9, 10]


def test_another_recipe_in_the_folder_is_refused(tmp_path, toy):
    recipe = toy("jepa")
    out = run(recipe, tmp_path / "run")
    with pytest.raises(RunError, match=r"optim.clip: 1.0 there, 2.0 asked for"):
        run(recipe, out, "optim.clip=2.0")
    run(recipe, out, "run.log_every=2")  # harmless


@pytest.mark.two_ranks
@pytest.mark.parametrize(
    "sets",
    [pytest.param((), marks=pytest.mark.slow), ("run.shard=2", "run.micro=2")],
    ids=["copies", "sharded and accumulated"],
)
def test_a_checkpoint_of_one_process_goes_on_under_two(tmp_path, toy, sets):
    recipe = toy("jepa")
    drive(tmp_path / "one", recipe)
    drive(tmp_path / "both", recipe)
    for path in Folder(tmp_path / "both" / "toy-jepa").checkpoints.glob("*10.safetensors"):
        path.unlink()
    done = drive(tmp_path / "both", recipe, "--", *sets, ranks=2)
    assert "resumed from step-000000005" in done.stdout
    told = 0 if sets else 1  # shards send something else
    assert (
        len(re.findall(r"an all-reduce among 2 processes reaches [\d.]+ GB/s; the gradients are", done.stdout)) == told
    )
    assert len(re.findall(r"an all-reduce of the gradients takes [\d.]+ ms, \d+% of a step", done.stdout)) == told
    assert gap(weights(tmp_path / "one" / "toy-jepa"), weights(tmp_path / "both" / "toy-jepa")) < 1e-5


@pytest.mark.slow
@pytest.mark.two_ranks
def test_copies_go_from_four_processes_to_two_and_back(tmp_path, pairs):
    """Stopped on the way, as by a preemption; the curve is that of the unbroken run."""
    recipe, out = pairs / "toy-jepa.yaml", tmp_path / "toy-jepa"
    for ranks, last in ((4, 3), (2, 6), (4, 10)):
        assert drive(tmp_path, recipe, "--", "run.save_every=1", "run.keep=20", ranks=ranks).returncode == 0
        for step in range(last + 1, 11):  # as if it had ended here
            checkpoint.path_of(Folder(out).checkpoints, step).unlink(missing_ok=True)
    whole = pairs / "by4-2" / "toy-jepa"
    assert losses(out) == pytest.approx(losses(whole), rel=1e-5)
    assert gap(weights(out), weights(whole)) < 1e-5


@pytest.mark.two_ranks
def test_a_rank_that_fails_ends_the_job(tmp_path, toy):
    recipe = toy("jepa")
    text = recipe.read_text().replace("length: 64", "length: 64, broken: 1")
    recipe.write_text(text)
    started = time.monotonic()
    done = drive(tmp_path / "out", recipe, ranks=2)
    assert done.returncode != 0
    assert "images could be read" in done.stderr
    assert time.monotonic() - started < 120


def test_steps_that_are_not_finite_change_nothing_and_three_end_the_run(tmp_path, toy):
    recipe = toy("jepa")
    recipe.write_text(recipe.read_text().replace("length: 64", "length: 64, nan_from: 63"))
    out = tmp_path / "run"
    run(recipe, out, "run.batch=8", "run.steps=8")  # one batch an epoch holds the bad image
    reports = list((out / "nonfinite").iterdir())
    assert len(reports) == 1
    assert "63" in reports[0].read_text().split()
    assert all(torch.isfinite(value).all() for value in weights(out).values())
    recipe.write_text(recipe.read_text().replace("nan_from: 63", "nan_from: 1"))
    with pytest.raises(RunError, match="3 steps in a row"):
        run(recipe, tmp_path / "bad")


def test_a_run_whose_weights_overflow_ends_with_the_promised_message(tmp_path, toy):
    """Its features are not finite where RankMe looks at them, in every step."""
    with pytest.raises(RunError, match="3 steps in a row"):
        run(toy("jepa"), tmp_path / "run", "optim.lr=1e30", "optim.clip=null", "run.monitor_every=1")


@pytest.mark.slow
@pytest.mark.two_ranks
def test_a_step_that_is_not_finite_changes_no_shard_and_shards_go_on_whole(tmp_path, toy):
    recipe = toy("ibot")
    recipe.write_text(recipe.read_text().replace("length: 64", "length: 64, nan_from: 63"))
    sets = ("--", "run.batch=8", "run.steps=8", "optim.clip=0.01", "optim.clip_each=true")
    assert drive(tmp_path / "one", recipe, *sets).returncode == 0
    done = drive(tmp_path / "many", recipe, *sets, "run.shard=2", ranks=2)
    assert done.returncode == 0, done.stderr
    one, many = tmp_path / "one" / "toy-ibot", tmp_path / "many" / "toy-ibot"
    assert len(list((one / "nonfinite").iterdir())) == 1
    assert gap(weights(one), weights(many)) < 1e-5
    (Folder(many).checkpoints / "step-000000008.safetensors").unlink()
    assert "resumed from step-000000005" in drive(tmp_path / "many", recipe, *sets).stdout
    assert gap(weights(one), weights(many)) < 1e-5


def test_unreadable_images_are_replaced_counted_and_too_many_refused(tmp_path, toy):
    recipe = toy("jepa")
    recipe.write_text(recipe.read_text().replace("length: 64", "length: 64, broken: 40"))
    out = run(recipe, tmp_path / "few", "run.unreadable=0.1")
    listed = [json.loads(line) for line in (out / "unreadable.jsonl").read_text().splitlines()]
    assert {line["image"] for line in listed} == {0, 40}
    assert "truncated file" in listed[0]["error"]
    with pytest.raises(RunError, match=r"more than run.unreadable = 0.01"):
        run(recipe, tmp_path / "many")
    with pytest.raises(RunError, match=r"1 of \d\d images could not be read, more than run.unreadable = 0 "):
        run(recipe, tmp_path / "none", "run.unreadable=0")


def test_a_batch_is_split_evenly_or_refused():
    assert data.split(64, 4, 5) == data.Split(64, 4, 4)
    assert data.split(64, 1, None).micro == 64
    with pytest.raises(RunError, match="cannot be split evenly over 3"):
        data.split(64, 3, None)
    places = [place for part in range(4) for rank in range(4) for place in data.Split(64, 4, 4).slots(rank, part)]
    assert places == list(range(64))


def test_every_image_is_seen_once_an_epoch():
    order = data.Order(50, 8, 3)
    assert order.epoch_steps == 6
    assert sorted(order.epoch(0).tolist()) == list(range(50))
    assert not torch.equal(order.epoch(0), order.epoch(1))
    with pytest.raises(RunError, match="larger than the data set of 5"):
        data.Order(5, 8, 0)


def test_metrics_hold_what_a_run_should_tell(tmp_path, toy):
    out = run(toy("jepa"), tmp_path / "run")
    line = Folder(out).metrics.read()[4]
    wanted = "step epoch loss loss/guess grad_norm lr weight_decay guess/prediction_std guess/target_std guess/target_unit_std "
    wanted += "context_patches context_share/image target_share/image images_per_second data_wait rankme"
    assert set(wanted.split()) <= set(line)
    assert line["context_share/image"] == 0.5
    assert line["target_share/image"] == 0.5
    assert line["lr"] == pytest.approx(
        0.01 * 0.5 * (1 + math.cos(math.pi * 1 / 7)) + 0.001 * (1 - 0.5 * (1 + math.cos(math.pi * 1 / 7)))
    )


def test_loss_in_the_file_is_in_full_precision(tmp_path, toy):
    recipe = toy("jepa")
    read, catalogue = load(str(recipe), ())
    seen = []
    train(
        read,
        catalogue,
        check(read, catalogue),
        tmp_path / "run",
        World(),
        Watch(show=lambda _at, x: seen.append(x)),
    )
    assert [line["loss"] for line in Folder(tmp_path / "run").metrics.read()] == [line["loss"] for line in seen]
    assert all(torch.tensor(line["loss"]).item() == line["loss"] for line in seen)  # exact float32 values


def test_the_resolved_recipe_trains_the_same(tmp_path, toy):
    first = run(toy("msn"), tmp_path / "a", "run.steps=4")
    assert yaml.safe_load((first / "recipe.yaml").read_text())["run"]["steps"] == 4
    assert same(weights(first), weights(run(first / "recipe.yaml", tmp_path / "b")))


def test_swapping_a_part_leaves_the_start_of_the_others(tmp_path, toy):
    starts = []
    for sets in ((), ("predictor={use: head}", "losses.guess.predict=predictor.image", "losses.guess.use=centered")):
        read, catalogue = load(str(toy("jepa")), sets)
        starts.append(build(read, catalogue)[0].student.encoder.state_dict())
    assert same(*starts)


def test_loader_workers_hear_their_own_process_alone():
    """TERM from elsewhere, as SLURM sends it to all, leaves them at work; Python's own at its exit ends them."""

    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, i):
            return i

    made = iter(
        torch.utils.data.DataLoader(
            Numbers(),
            None,
            sampler=range(100),
            num_workers=1,
            worker_init_fn=deaf,
            multiprocessing_context="fork",
        )
    )
    assert next(made) == 0
    (worker,) = made._workers
    subprocess.run(["sh", "-c", f"kill -TERM {worker.pid}"], check=True)
    assert [next(made) for _ in range(20)] == list(range(1, 21))
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
    made._shutdown_workers()


@pytest.mark.two_ranks
@pytest.mark.slow
@pytest.mark.parametrize("sets", [("run.reduce=bf16",), ("run.shard=2", "run.gather=bf16", "run.reduce=bf16")])
def test_weights_and_gradients_that_travel_in_bf16_stay_within_its_rounding(tmp_path, toy, sets):
    recipe, steps = toy("jepa"), ("--", "run.steps=5", "run.precision=bf16", "optim.use=sgd", "optim.lr=0.1")
    for name, more in (("plain", ()), ("rounded", sets)):
        done = drive(tmp_path / name, recipe, *steps, *more, ranks=2)
        assert done.returncode == 0, done.stderr
    plain, rounded = (losses(tmp_path / name / "toy-jepa") for name in ("plain", "rounded"))
    assert plain != rounded, "something was rounded"
    assert list(plain.values()) == pytest.approx(list(rounded.values()), rel=2**-7)


def test_weights_are_gathered_as_blocks_compute(toy):
    with pytest.raises(RecipeError, match="gather: bf16 wants precision bf16"):
        load(str(toy("jepa")), ("run.gather=bf16", "run.precision=fp32"))


def test_pixels_of_another_size_than_the_view_declares_are_told():
    """Masks, made by the declared size, would be of another grid: the run went on in silence."""

    class Thumb:
        size = (8, 8)

        def __call__(self, image):
            return torch.zeros(3, 4, 8), torch.zeros(4)

    with pytest.raises(RunError, match=r"the view Thumb gives pixels \[3 4 8\], and its size says \[3 8 8\]"):
        data.look(Thumb(), None, 0)


def test_shares_of_masks_are_means_over_micro_batches():
    """They were those of the first one alone."""
    masks = [Mask(Patches(torch.arange(k)[None]), Patches(torch.arange(q)[None, None])) for k, q in ((8, 4), (4, 12))]
    batches = [
        data.Batch({"image": data.Group(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 4), mask)}, data.pair({}))
        for mask in masks
    ]
    found = mask_shares(batches, {"image": (4, 4)})
    assert found == {"context_patches": 6, "context_share/image": 0.375, "target_share/image": 0.5}


def test_figures_of_rows_are_those_of_all_rows_and_of_none_unknown():
    """A micro-batch that asks for nothing made them null, and one that asks for little counted as much as others."""
    x, right = torch.randn(7, 5) + 100, torch.tensor([1.0, 1, 0, 0, 0, 1, 1])
    parts = [(moments(x[some]), weighed(right[some].mean(), len(x[some]))) for some in (slice(0, 2), slice(2, 7))]
    parts += [(moments(x[:0]), weighed(right[:0].mean(), 0))]
    std, accuracy = (sum(some) for some in zip(*parts, strict=True))
    none = {"none_std": parts[2][0], "none": parts[2][1]}
    found = collect(
        {"std": std, "accuracy": accuracy, "plain": torch.tensor(3.0), "number": 2} | none, torch.device("cpu")
    )
    assert found["std"] == pytest.approx(x.std(0, correction=0).mean().item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(4 / 7)
    assert (found["plain"], found["number"]) == (3.0, 2)
    assert math.isnan(found["none_std"])
    assert math.isnan(found["none"])


def test_padding_is_no_target():
    target = Patches(torch.tensor([[[1, 2, 0]], [[0, 0, 0]]]), torch.tensor([[2], [0]]))
    mask = Mask(Patches(torch.arange(4).expand(2, 4)), target)
    group = data.Group(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 4), mask)
    assert mask_shares([data.Batch({"image": group}, data.pair({}))], {"image": (4, 4)})["target_share/image"] == 2 / 32


def test_patches_that_the_student_saw_are_counted_over_views_and_copies_of_masks():
    mask = Mask(Patches(torch.arange(3).expand(8, 3)), Patches(torch.arange(4).expand(8, 1, 4)))
    groups = {
        "masked": data.Group(torch.zeros(2, 2, 1, 1, 1), torch.zeros(2, 2, 4), mask),  # 2 views and 2 masks of each
        "whole": data.Group(torch.zeros(3, 2, 1, 1, 1), torch.zeros(3, 2, 4), role="context"),
        "taught": data.Group(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 4), role="target"),
    }
    found = mask_shares([data.Batch(groups, data.pair({}))], {"masked": (4, 4), "whole": (2, 2), "taught": (4, 4)})
    assert found["context_patches"] == 2 * 2 * 3 + 3 * 4
