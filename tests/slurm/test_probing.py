"""Probing after a submitted run: a job of its own, on one process, which trains nothing whatever becomes of it."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import settings, sslzoo, status, wait

pytestmark = pytest.mark.slurm


def shown(job):
    """What SLURM says of a job."""
    told = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True).stdout
    return dict(pair.split("=", 1) for pair in told.split() if "=" in pair)


def test_probing_follows_as_a_job_of_its_own_and_begins_again_when_interrupted(cluster, tmp_path):
    run = tmp_path / "run"
    more = ["--set", "evaluate.train.length=400", "--set", "evaluate.test.length=200"]
    words = ["submit", "tiny/ijepa", "--cluster", cluster / "slow.yaml", "--nodes", 2, "--out", run, *more]
    sslzoo(*words, *settings(cluster, 20))
    launch = json.loads((run / "launch.json").read_text())
    told = shown(launch["probing"])
    assert told["Dependency"].startswith(f"afterok:{launch['job']}")
    assert (told["NumNodes"], told["NumTasks"]) in {("1", "1"), ("1-1", "1")}
    assert told["TimeLimit"] == "1-00:00:00", "the limit of probing, not that of the training"
    row = wait(run, lambda row: row["state"] == "done")
    assert f"probing, job {launch['probing']}" in row["reason"]
    assert shown(launch["job"])["JobState"] in ("COMPLETING", "COMPLETED"), "the training's nodes are free"
    # Interrupted while it probes: SLURM queues it again, and nothing is trained again.
    wait(run, lambda row: shown(launch["probing"])["JobState"] == "RUNNING")
    subprocess.run(["scontrol", "requeue", launch["probing"]], check=True)
    wait(run, lambda row: not row["reason"])
    assert int(shown(launch["probing"])["Restarts"]) == 1
    assert len((run / "attempts.jsonl").read_text().splitlines()) == 1
    (figures,) = (run / "eval").glob("*.json")
    assert set(json.loads(figures.read_text())["figures"]) == {"trained", "untrained", "chance"}
    assert (run / "report" / "index.html").is_file()
    assert status(run)["state"] == "done"


def test_where_the_training_fails_nothing_is_probed(cluster, tmp_path):
    run = tmp_path / "failing"
    words = ["submit", "tiny/ijepa", "--cluster", cluster / "quick.yaml", "--out", run, "--set", "optim.lr=1e30"]
    sslzoo(*words, *settings(cluster, 20))
    launch = json.loads((run / "launch.json").read_text())
    assert wait(run, lambda row: row["state"] == "failed")
    wait(run, lambda row: shown(launch["probing"]).get("JobState", "CANCELLED").startswith("CANCELLED"))
    assert not (run / "eval").exists()
    assert Path(launch["logs"]).is_dir()
