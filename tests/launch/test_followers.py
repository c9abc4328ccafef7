"""What follows a training, and what a drill leaves: jobs that wait are seen, cancelled, and ask for no whole node."""

from pathlib import Path

import pytest

from sslzoo import RunError, UserError
from sslzoo.launch import drill, follow, slurm, submit
from sslzoo.launch.profile import Profile
from sslzoo.launch.slurm import Answer
from sslzoo.launch.submit import Asked, Element
from sslzoo.recipe.recipe import load, warmups
from sslzoo.run.state import State

LAUNCH = {"asked": {"cluster": "x"}, "top": "t", "code": "c", "logs": "l", "job": "5", "probing": "6", "then": ["7"]}


@pytest.fixture
def queue(monkeypatch):
    """What SLURM says of jobs, by number; those that were cancelled."""
    said, cancelled = {}, []
    monkeypatch.setattr(slurm, "ask", lambda jobs: {job: said[job] for job in jobs if job in said})
    monkeypatch.setattr(slurm, "cancel", lambda jobs: (cancelled.extend(jobs), [said.pop(job) for job in jobs]))
    return said, cancelled


@pytest.fixture
def run(tmp_path):
    State(tmp_path / "run").folder.mkdir()
    State(tmp_path / "run").write_launch(LAUNCH)
    State(tmp_path / "run").tell("done", step=4)
    return tmp_path / "run"


@pytest.mark.parametrize("job", ["6", "7"])
def test_a_run_whose_followers_wait_is_in_use_and_they_are_cancelled(run, queue, job):
    said, cancelled = queue
    said |= {"5": Answer("COMPLETED"), "6": Answer("COMPLETED"), "7": Answer("COMPLETED"), job: Answer("PENDING")}
    with pytest.raises(UserError, match=f"in use: job {job} is PENDING"):
        submit.refuse_if_active(run)
    assert follow.cancel(run).startswith(f"job {job} cancelled, which followed the training")
    assert cancelled == [job]
    assert State(run).now["state"] == "done"
    submit.refuse_if_active(run)
    with pytest.raises(UserError, match="does not run: it is done"):
        follow.cancel(run)


def test_a_run_is_cancelled_with_all_that_waits_for_it(run, queue):
    said, cancelled = queue
    said |= {"5": Answer("RUNNING"), "6": Answer("PENDING"), "7": Answer("PENDING")}
    State(run).tell("running")
    assert "jobs 5, 6, 7 cancelled; `sslzoo resume" in follow.cancel(run)
    assert cancelled == ["5", "6", "7"]
    said |= {"5": Answer("CANCELLED by 0"), "6": Answer("PENDING", "Dependency")}
    submit.refuse_if_active(run)  # SLURM has yet to remove what waited for its success


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [("0", None), (None, None), ("800G", "102400M"), ("1T", "131072M"), ("8000", "1000M"), ("9KB", None)],
)
def test_a_job_of_one_gpu_asks_for_its_share_of_a_node(memory, wanted):
    kept = {"reservation": "mine", "gres-flags": "enforce-binding"}
    sbatch = {"gres": "gpu:8", "exclusive": True, "gpus-per-task": 1, **kept}
    profile = Profile(gpus_per_node=8, memory=memory, sbatch=sbatch)
    assert profile.of_one_process(8).memory == wanted
    assert profile.of_one_process(8).sbatch == kept
    assert profile.of_one_process(8).processes(1) == 1
    assert "gres" in profile.of_one_process(0).sbatch, "without --gpus-per-node it may be the GPU itself"
    assert profile.model_copy(update={"probing_memory": "64G"}).of_one_process(8).memory == "64G"


def test_what_follows_a_training_asks_for_no_whole_node(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(slurm, "submit", lambda plan, *_words: seen.append(plan.parameters()) or ["6"])
    profile = Profile(gpus_per_node=8, memory="0", probing_memory="64G", sbatch={"exclusive": True})
    made = slurm.Plan("x", profile, 2, 8, "1h", "x")
    assert submit._afterwards(made, "probing", "5", "2h", [print], tmp_path) == ["6"]
    asked = {key: seen[0][key] for key in ("nodes", "ntasks_per_node", "gpus_per_node", "mem", "dependency", "time")}
    assert asked == {
        "nodes": 1,
        "ntasks_per_node": 1,
        "gpus_per_node": 1,
        "mem": "64G",
        "dependency": "afterok:5",
        "time": 120,
    }
    assert seen[0]["additional_parameters"] == {"requeue": True, "kill_on_invalid_dep": "yes"}


@pytest.fixture
def rehearsal(tmp_path, monkeypatch, queue):
    """A drill on a cluster by hand: jobs are numbers, and time passes when somebody sleeps."""
    said, _ = queue
    clock = [0.0]

    def submitted(found, *_words):
        (one,) = found
        job = str(len(said) + 1)
        one.folder.mkdir(parents=True, exist_ok=True)
        State(one.folder).write_launch(LAUNCH | {"job": job, "probing": "", "then": []})
        said[job] = Answer("PENDING", "Priority")
        return [job]

    monkeypatch.setattr(drill, "submit", submitted)
    monkeypatch.setattr(drill.time, "monotonic", lambda: clock[0])
    element = Element(tmp_path / "drill", *load("tiny/ijepa", ["run.steps=60"]))
    cluster = tmp_path / "x.yaml"
    cluster.write_text("gpus_per_node: 0\nsbatch: {requeue: false}\n")

    def go(sleep):
        def slept(seconds):
            clock[0] += 600 * seconds
            sleep(clock[0])

        monkeypatch.setattr(drill.time, "sleep", slept)
        return drill.on_cluster(element, Asked(str(cluster)), lambda _: None)

    return go, clock


def test_a_drill_waits_in_the_queue_as_long_as_it_takes_and_an_hour_after_that(queue, rehearsal):
    said, cancelled = queue
    go, clock = rehearsal

    def sleep(now):
        if now > 24 * 3600:
            said["2"] = Answer("RUNNING")

    with pytest.raises(RunError, match="did not reach step 20 within an hour"):
        go(sleep)
    assert 25 * 3600 < clock[0] < 26 * 3600
    assert cancelled == ["1", "2"]


def test_a_drill_where_nothing_is_queued_again_resumes_the_run_with_a_job_of_its_own(
    queue, rehearsal, tmp_path, monkeypatch
):
    """What it says there is what the profile asks for: the run saved and left, and nothing is wrong with it."""
    said, cancelled = queue
    whole, broken = (tmp_path / "drill" / name for name in drill.NAMES)
    monkeypatch.setattr(drill, "compare", lambda *_folders: drill.Verdict(60, 20, 0, 0.0, "", ()))

    def scancel(words, **_):
        assert words == ["scancel", "--signal=TERM", "2"]
        State(broken).tell("stopped", step=20)
        said["2"] = Answer("FAILED", "NonZeroExitCode")

    monkeypatch.setattr(drill.subprocess, "run", scancel)

    def sleep(_now):
        if "3" not in said:
            said["2"] = Answer("RUNNING")
            State(broken).tell("running", step=20)
        else:
            for run, job in ((whole, "1"), (broken, "3")):
                State(run).tell("done", step=60)
                said[job] = Answer("COMPLETED")

    assert rehearsal[0](sleep).exact
    assert State(broken).launch["job"] == "3"
    assert cancelled == []


def test_a_run_that_saved_and_left_and_is_not_queued_again_is_stopped_not_failed(run, queue):
    said, _ = queue
    state = State(run)

    def row():
        return follow.rows([run])[0]

    said["5"] = Answer("FAILED", "NonZeroExitCode", "n1")
    state.tell("stopped", step=4)
    assert (row().state, row().nodes) == ("stopped", "n1")
    assert f"`sslzoo resume {run}` goes on" in row().reason
    state.write_launch(LAUNCH | {"time": state.now["time"] + 60})  # resumed, and that job never came so far
    assert (row().state, row().reason) == ("failed", "SLURM: FAILED NonZeroExitCode")
    state.write_launch(LAUNCH)
    said["5"] = Answer("OUT_OF_MEMORY")
    assert row().state == "failed"
    said["5"] = Answer("FAILED")
    (run / "failure.txt").write_text("2 attempts since the last save did no step")
    assert row().state == "failed"


def test_a_drill_shortens_the_warm_ups_of_groups_losses_and_targets_too(tmp_path):
    warm = "{warmup: {steps: 500, from: 0, to: 1}}"
    places = ("losses.guess.weight", "targets.teacher.momentum", 'optim.groups."*.bias".lr', "optim.groups.encoder*.lr")
    recipe, installed = load("tiny/ijepa", ["run.steps=700", *(f"{place}={warm}" for place in places)])
    short = drill.short(Element(tmp_path, recipe, installed), 12).recipe
    assert [warm.amount for _, warm in warmups(short, installed) if warm.unit == "steps"] == [12] * len(places)
    assert short.optim["groups"].keys() == recipe.optim["groups"].keys()


def test_a_drill_that_is_broken_off_leaves_no_job_and_the_next_removes_no_folder_of_one(queue, rehearsal, tmp_path):
    said, cancelled = queue

    def sleep(_now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rehearsal[0](sleep)
    assert cancelled == ["1", "2"]
    for name in drill.NAMES:
        (tmp_path / "drill" / name / "drill.txt").write_text("")
    said["2"] = Answer("PENDING")
    with pytest.raises(UserError, match="in use: job 2 is PENDING"):
        drill.empty(tmp_path / "drill")
    assert all(Path(tmp_path / "drill" / name / "launch.json").exists() for name in drill.NAMES)
    del said["2"]
    drill.empty(tmp_path / "drill")
    assert not (tmp_path / "drill" / "broken" / "launch.json").exists()
