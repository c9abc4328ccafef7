"""Runs on a real SLURM that are preempted, requeued, stopped by their time limit and robbed of a node."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import HERE, SAVE_EVERY, STEPS, finish, reach, status, submit

from sslzoo.launch.drill import compare
from sslzoo.run.state import State

pytestmark = pytest.mark.slurm


def test_an_unbroken_run_starts_once_on_both_nodes(unbroken):
    row = status(unbroken)
    assert (row["restarts"], row["repeated"]) == (0, 0)
    assert row["nodes"] == "n[1-2]"


def check(unbroken, run, capsys, what):
    """Weights and metrics equal the unbroken run's bit for bit."""
    row = finish(run)
    verdict = compare(unbroken, run)
    assert verdict.exact, verdict
    assert row["restarts"] >= 1
    with capsys.disabled():
        attempts = [one["from"] for one in State(Path(run)).attempts]
        print(f"\n{what}: started from steps {attempts}, {row['repeated']} steps done twice")
    return row


def test_a_run_preempted_by_a_higher_partition_goes_on_without_loss(cluster, unbroken, tmp_path, capsys):
    run = tmp_path / "preempted"
    submit(cluster, run)
    reach(run, 20)
    words = ["--partition=high", "--nodes=2", "--ntasks-per-node=2", "--output=/dev/null", "--wrap", "sleep 3"]
    subprocess.run(["sbatch", *words], check=True, stdout=subprocess.DEVNULL)
    row = check(unbroken, run, capsys, "preempted by a higher partition")
    assert row["repeated"] == 0


def test_a_run_requeued_by_hand_goes_on_without_loss(cluster, unbroken, tmp_path, capsys):
    run = tmp_path / "requeued"
    job = submit(cluster, run)
    reach(run, 30)
    subprocess.run(["scontrol", "requeue", job], check=True)
    row = check(unbroken, run, capsys, "requeued by hand")
    assert row["repeated"] == 0


def test_a_run_that_is_only_sent_a_user_signal_requeues_itself(cluster, unbroken, tmp_path, capsys):
    run = tmp_path / "signalled"
    job = submit(cluster, run)
    reach(run, 30)
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    row = check(unbroken, run, capsys, "sent USR1")
    assert row["repeated"] == 0


def test_a_run_stopped_by_its_time_limit_goes_on_without_loss(cluster, unbroken, tmp_path, capsys):
    run = tmp_path / "limited"
    submit(cluster, run, "crawl", more=["--time", "2m"])
    row = check(unbroken, run, capsys, "stopped by its time limit")
    assert row["repeated"] == 0


def test_a_run_that_loses_a_node_goes_on_from_its_last_checkpoint(cluster, unbroken, tmp_path, capsys):
    run = tmp_path / "robbed"
    submit(cluster, run, "steady")
    reach(run, SAVE_EVERY + 10)
    daemons = Path(os.environ["SSLZOO_SLURM"])
    pid = (daemons / "slurmd-n2.pid").read_text().strip()
    subprocess.run(["kill", "-9", pid], check=True)
    wait_for_nodes("n2", "down")
    with (daemons / "log" / "again.log").open("w") as log:
        subprocess.run([str(HERE / "cluster.sh"), "node", "n2"], check=True, stdout=log, stderr=log)
    row = check(unbroken, run, capsys, "robbed of a node's daemon")
    assert row["repeated"] < STEPS


def test_a_run_whose_processes_die_with_a_node_goes_on(cluster, unbroken, tmp_path, capsys):
    run = tmp_path / "halved"
    submit(cluster, run)
    reach(run, SAVE_EVERY + 10)
    lost = [*_tasks_of("n2")]
    for process in lost:
        subprocess.run(["kill", "-9", str(process)], check=False)
    row = check(unbroken, run, capsys, "robbed of half of its processes")
    assert 0 < row["repeated"] < STEPS


def _tasks_of(node):
    """Processes of a lost node's tasks: a machine that dies takes them along."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes()
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() in environment and b"SLURM_PROCID" in environment:
            found.append(int(place.name))
    return found


def wait_for_nodes(node, state, seconds=120):
    import time

    for _ in range(seconds):
        told = subprocess.run(["sinfo", "-h", "-n", node, "-p", "low", "-o", "%T"], capture_output=True, text=True)
        if state in told.stdout:
            return
        time.sleep(1)
    raise AssertionError(f"{node} is {told.stdout}, not {state}")


def test_the_pickle_holds_a_folder_and_code_is_that_of_the_submission(unbroken):
    launch = json.loads((unbroken / "launch.json").read_text())
    pickles = list(Path(launch["logs"]).glob("*submitted.pkl"))
    assert pickles
    assert all(path.stat().st_size < 1500 for path in pickles)
    log = next(Path(launch["logs"]).glob(f"{launch['job']}_0_log.out")).read_text()
    assert "4 processes started by srun" in log
    code = Path(State(unbroken).launch["code"])
    assert code.parent == unbroken / "code"
    assert (code / "sslzoo" / "train.py").is_file()
    assert (code / "plugin_files" / "0" / "slow.py").is_file()
    assert "torch==" in (code / "environment.txt").read_text()
    assert str(code / "plugin_files") in (unbroken / "recipe.yaml").read_text()
