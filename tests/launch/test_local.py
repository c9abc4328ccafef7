"""Runs on this machine, without SLURM: followed, cancelled, gone on with, rehearsed; and what is refused."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sslzoo import RunError
from sslzoo.cli import main
from sslzoo.launch.drill import compare
from sslzoo.launch.job import Probing
from sslzoo.launch.profile import minutes
from sslzoo.launch.work import Promised, work
from sslzoo.recipe.recipe import load
from sslzoo.report.records import read
from sslzoo.report.words import made as made_of
from sslzoo.run import processes
from sslzoo.run.folder import Folder
from sslzoo.run.state import State
from sslzoo.run.stop import Stop

SHORT = ["--set", "run.batch=8", "--set", "run.workers=0", "--set", "run.monitor=0", "--set", "data.length=40"]
SHORT += ["--set", "run.log_every=1", "--set", "evaluate.train.length=60", "--set", "evaluate.test.length=40"]


@pytest.fixture
def sslzoo(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder: exit code, what it printed, what it complained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(list(map(str, words)))
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


def start(folder, *words):
    command = [sys.executable, "-m", "sslzoo", "train", "tiny/ijepa", *SHORT, "--no-evaluate", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_a_local_run_is_followed_cancelled_and_resumed(sslzoo, tmp_path):
    # With loader workers, which hear no signal: Python must not wait for them when the run is stopped.
    process = start(tmp_path, "--out", "run", "--set", "run.steps=150", "--set", "run.workers=2")
    state = tmp_path / "run" / "state.json"
    until = time.monotonic() + 120
    while not (state.exists() and json.loads(state.read_text()).get("step", 0) > 2):
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    (row,) = json.loads(sslzoo("status", "run", "--json")[1])
    assert (row["state"], row["steps"], row["restarts"]) == ("running", 150, 0)
    assert row["left"] > 0
    code, _, told = sslzoo("train", "tiny/ijepa", *SHORT, "--set", "run.steps=150", "--out", "run")
    assert (code, f"in use (host {os.uname().nodename}, pid {process.pid})" in told) == (2, True), told
    assert "asked to save and leave" in sslzoo("cancel", "run")[1]
    assert process.wait(60) == 128 + signal.SIGTERM
    (row,) = json.loads(sslzoo("status", "run", "--json")[1])
    assert row["state"] == "stopped"
    assert 2 < row["step"] < 150
    assert sslzoo("cancel", "run")[0] == 2
    done = subprocess.run(
        [sys.executable, "-m", "sslzoo", "resume", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert f"resumed from step-{row['step']:09d}" in done.stdout, done.stderr
    (row,) = json.loads(sslzoo("status", "run", "--json")[1])
    assert (row["state"], row["step"], row["restarts"], row["repeated"]) == ("done", 150, 1, 0)
    log = sslzoo("logs", "run")[1]
    assert "step 1/150" in log
    assert "resumed from" in log
    assert "trained  untrained" in log


@pytest.mark.slow
def test_a_drill_on_this_machine_ends_with_a_verdict(sslzoo):
    code, out, _ = sslzoo("drill", "tiny/ijepa", *SHORT, "--steps", 30, "--out", "drill")
    assert code == 0
    assert "0 steps done twice" in out
    assert "bit for bit: this run survives here" in out


@pytest.mark.slow
def test_what_follows_the_training_is_done_by_the_first_of_several_processes_alone(tmp_path):
    """The page of CAPI asks its teacher for targets, which balances clusters over all ranks: the others had left."""
    sets = [*SHORT, "--set", "run.steps=2", "--set", "run.device=cpu", "--set", "evaluate.probes={knn: {use: knn}}"]
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "sslzoo",
        "train",
        "tiny/capi",
    ]
    done = subprocess.run(
        [sys.executable, *words, *sets, "--out", str(tmp_path / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "report" / "predictions.svg").is_file()
    assert State(tmp_path / "run").now["state"] == "done"


def test_a_drill_that_was_never_stopped_has_no_verdict(tmp_path):
    recipe, installed = load(
        "tiny/ijepa",
        (
            "run.steps=1",
            "run.batch=4",
            "run.monitor=0",
            "run.device=cpu",
            *(one for one in SHORT if one.startswith("data.")),
            "optim.lr=1e-3",
        ),
    )
    for name in ("whole", "broken"):
        work(recipe, installed, tmp_path / name, Stop(), evaluate=False)
    with pytest.raises(RunError, match="ended before the signal stopped it"):
        compare(tmp_path / "whole", tmp_path / "broken")


def test_a_folder_that_another_process_holds_is_refused(sslzoo, tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, told = sslzoo("train", "tiny/ijepa", *SHORT, "--set", "run.steps=2", "--out", "run")
    assert (code, "the run folder run is in use" in told) == (2, True)


def test_a_folder_that_cannot_be_written_is_refused(sslzoo, tmp_path):
    (tmp_path / "file").write_text("")
    for command in ("train", "submit"):
        words = [] if command == "train" else ["--cluster", "a100-80gb", "--nodes", 1, "--gpus", 1, "--dry-run"]
        code, _, told = sslzoo(command, "tiny/ijepa", *words[:-1], *SHORT, "--out", "file/run")
        assert code == 2
        assert "file/run" in told
        assert "Traceback" not in told


def test_a_machine_without_slurm_says_so(sslzoo, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for more in ([], ["--dry-run"]):
        code, _, told = sslzoo("submit", "tiny/ijepa", "--cluster", "a100-80gb", "--gpus", 1, *more)
        assert (code, "sbatch and srun not found" in told) == (2, True)


def test_a_profile_is_found_by_name_and_checked(sslzoo, tmp_path):
    code, _, told = sslzoo("submit", "tiny/ijepa", "--cluster", "a100-80", "--gpus", 1)
    assert code == 2
    assert "did you mean a100-80gb" in told
    (tmp_path / "mine.yaml").write_text("partitoin: low\ngpus_per_node: some\ntime: soon\n")
    code, _, told = sslzoo("submit", "tiny/ijepa", "--cluster", "mine.yaml")
    assert code == 2
    for words in ("line 1", "did you mean partition?", "line 2", "gpus_per_node"):
        assert words in told


@pytest.mark.parametrize(
    ("text", "found"), [("72h", 4320), ("90m", 90), ("3d", 4320), ("12:30:00", 750), ("3-00:00:00", 4320), ("0:30", 1)]
)
def test_time_limits_are_read_as_people_write_them(text, found):
    assert minutes(text) == (found if text != "0:30" else 30)


def test_time_limits_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="such as 72h, 90m"):
        minutes("soon")


def environment(monkeypatch, **words):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")):
            monkeypatch.delenv(name)
    for name, value in words.items():
        monkeypatch.setenv(name, value)


def test_what_started_a_process_is_read_from_its_environment(monkeypatch):
    environment(monkeypatch)
    assert processes.launched() == ("alone", 0, 1, 0)
    environment(monkeypatch, WORLD_SIZE="4", RANK="3", LOCAL_RANK="1")
    assert processes.launched() == ("torchrun", 3, 4, 1)
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "20007"}
    environment(monkeypatch, SLURM_STEP_ID="0", SLURM_STEP_NODELIST="gpu[07-09,12]", **step)
    assert processes.launched() == ("srun", 9, 16, 1)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "12007")
    environment(monkeypatch, SLURM_STEP_ID="1", SLURM_RESTART_COUNT="2", SLURM_STEP_NODELIST="gpu07", **step)
    processes.launched()
    assert os.environ["MASTER_PORT"] not in ("12007", "12008"), "another attempt, and another step, meet elsewhere"
    # A batch script is no step, an interactive shell is one with a number of its own.
    for number in ("4294967291", "4294967290"):
        environment(monkeypatch, SLURM_STEP_ID=number, SLURM_STEP_NODELIST="gpu07", **step)
        assert processes.launched() == ("alone", 0, 1, 0)


def test_an_environment_that_contradicts_itself_is_refused(monkeypatch):
    environment(monkeypatch, WORLD_SIZE="4")
    with pytest.raises(RunError, match="WORLD_SIZE is set but RANK"):
        processes.join("cpu")
    environment(monkeypatch, WORLD_SIZE="4", RANK="4", LOCAL_RANK="0")
    with pytest.raises(RunError, match="RANK is '4'; a whole number from 0 to 3 is wanted"):
        processes.join("cpu")
    environment(monkeypatch)
    with pytest.raises(RunError, match="8 processes were asked for, but alone started 1"):
        processes.join("cpu", 8)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[3-4]", "n3"),
        ("a1,b[2-3]", "a1"),
        ("rack1-gpu[08,11-12]", "rack1-gpu08"),
        ("rack[1-2,4]_gpu[3-4],n1", "rack1_gpu3"),
    ],
)
def test_the_first_host_of_a_list_is_where_processes_meet(nodes, first):
    assert processes._first_host(nodes) == first


def test_processes_learn_how_many_share_their_node(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(processes.socket, "gethostname", lambda: threading.current_thread().name[:2])

    def met(rank):
        threading.current_thread().name = ("n1", "n2", "n1")[rank]
        store, here = processes._meet(rank, 3, torch.device("cpu"))
        return here, store

    with ThreadPoolExecutor(3) as pool:
        met_all = list(pool.map(met, range(3)))  # the first one's store serves all until the last has read
    assert [here for here, _ in met_all] == [2, 1, 2]


def test_every_start_is_told_and_none_is_refused_for_those_before(tmp_path):
    """Preempted twice before the first log line, a run goes on: the batch script counts what ended by itself."""
    state = State(tmp_path)
    for start, reached in ((0, 40), (25, 80), (80, 80), (80, 80), (80, 80)):
        state.begin(start)
        state.tell("running", step=reached)
    assert [one["repeats"] for one in state.attempts] == [0, 15, 0, 0, 0]


def test_what_training_took_is_told_before_probing_whose_page_tells_it(tmp_path, monkeypatch):
    sets = ["run.steps=2", "encoder.depth=1", "targets.teacher.layers=1", "predictor.depth=1"]
    recipe, installed = load("tiny/ijepa", [*SHORT[1::2], *sets])
    told = []
    monkeypatch.setattr("sslzoo.launch.work._probe", lambda *given: told.append(made_of(read(given[2]))))
    work(recipe, installed, tmp_path / "run", Stop(), evaluate=True)
    made = dict(told[0])
    assert made["peak memory"] != "unknown"
    assert made["seen"].endswith(f"in 2 steps of {recipe.run.batch}")
    assert made["started"] == "at step 0 on 1 process"


def test_a_submitted_run_leaves_its_probing_to_a_job_that_never_trains(tmp_path, monkeypatch):
    sets = ["run.steps=2", "encoder.depth=1", "targets.teacher.layers=1", "predictor.depth=1", "run.precision=auto"]
    recipe, installed = load("tiny/ijepa", [*SHORT[1::2], *sets])
    run = tmp_path / "run"
    work(recipe, installed, run, Stop(), evaluate=True, promised=Promised(1, 0, 10))
    assert State(run).now["state"] == "done"
    assert not (run / "eval").exists()
    attempts = (run / "attempts.jsonl").read_text()
    monkeypatch.setattr("sslzoo.evaluate.figures.write", lambda *_: 1 / 0)  # as if it were ended before its end
    with pytest.raises(ZeroDivisionError):
        Probing(str(run))()
    monkeypatch.undo()
    Probing(str(run))()
    (figures,) = (run / "eval").glob("*.json")
    told = json.loads(figures.read_text())
    assert set(told["figures"]) == {"trained", "untrained", "chance"}
    assert told["precision"] in Folder(run).recipe.read_text(), "what the run chose, not a choice anew"
    assert (run / "report" / "index.html").is_file()
    assert (run / "attempts.jsonl").read_text() == attempts, "it was begun once, and trained once"
    assert State(run).now["state"] == "done"
