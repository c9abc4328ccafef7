"""A real SLURM for the tests of this folder: two nodes on this machine, brought up once and taken down at the end."""

import io
import json
import os
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from sslzoo.cli import main
from sslzoo.launch.follow import rows

HERE = Path(__file__).parent
PROFILE = """\
partition: low
gpus_per_node: 0
processes_per_node: 2
cpus_per_process: 1
time: 30m
signal_lead: 10
environment: {GLOO_SOCKET_IFNAME: lo, OMP_NUM_THREADS: "1", PAUSE: "{pause}", SLURM_KILL_BAD_EXIT: "1"}
"""
# Slows a run down without changing what it computes, and is a plugin that exists only as a file.
SLOW = """
import os, time
from sslzoo import hookimpl

@hookimpl
def sslzoo_log(metrics, at, folder):
    time.sleep(float(os.environ.get("PAUSE", "0")))
"""
STEPS, SAVE_EVERY = 120, 25


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Brings SLURM up; gives a folder that holds profiles and the plugin file."""
    home = tmp_path_factory.mktemp("slurm")
    # One place for all sessions, so that what a killed one left behind is taken down first.
    daemons = Path(os.environ.setdefault("SSLZOO_SLURM", "/tmp/sslzoo-slurm"))
    script = str(HERE / "cluster.sh")
    # Daemons keep the pipes they are born with, so their words go to a file.
    with (home / "up.log").open("w") as log:
        done = subprocess.run([script, "up"], stdout=log, stderr=log, start_new_session=True, timeout=600)
    assert done.returncode == 0, (home / "up.log").read_text()
    os.environ["SLURM_CONF"] = str(daemons / "slurm.conf")
    (home / "slow.py").write_text(SLOW)
    for name, pause in (("quick", 0), ("slow", 0.15), ("steady", 0.4), ("crawl", 0.9)):
        (home / f"{name}.yaml").write_text(PROFILE.replace("{pause}", str(pause)))
    yield home
    subprocess.run([script, "down"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def unbroken(cluster, tmp_path_factory):
    """A run of four processes on two nodes from start to end: what others must equal."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    submit(cluster, run, "quick")
    finish(run)
    return run


def sslzoo(*words, fails=False):
    """Runs a command, in this process to spare its start; returns what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert bool(left.value.code) == fails, printed.getvalue()
    return printed.getvalue()


def status(run):
    """The row of a run."""
    return json.loads(sslzoo("status", run, "--json"))[0]


def settings(cluster, steps=STEPS, save_every=SAVE_EVERY):
    """Words that make a recipe short."""
    words = ["--plugin", cluster / "slow.py"]
    for change in (
        f"run.steps={steps}",
        f"run.save_every={save_every}",
        "run.batch=8",
        "run.workers=0",
        "run.monitor=8",
        "run.monitor_every=20",
        "run.log_every=1",
        "data.length=64",
    ):
        words += ["--set", change]
    return words


def submit(cluster, out, profile="slow", **options):
    """Submits the tiny recipe on both nodes; returns the job's number."""
    nodes = ["--nodes", options.get("nodes", 2)]
    words = ["submit", "tiny/ijepa", "--cluster", cluster / f"{profile}.yaml", *nodes, "--no-evaluate", "--out", out]
    words += options.get("more", [])
    found = sslzoo(*words, *settings(cluster, options.get("steps", STEPS)), "--json")
    return json.loads(found[: found.rindex("]") + 1])[0]["job"]


def wait(run, until, seconds=240):
    """Waits until what status says of a run satisfies a condition."""
    left = time.monotonic() + seconds
    while True:
        row = rows([Path(run)])[0].json()  # what `sslzoo status` prints, without a process each time
        if until(row):
            return row
        assert time.monotonic() < left, f"{row}\n{tell(run)}"
        time.sleep(0.5)


def reach(run, step, seconds=240):
    """Waits for a step; from the run folder alone, which is quick."""
    left = time.monotonic() + seconds
    state = Path(run) / "state.json"
    while not (state.exists() and json.loads(state.read_text()).get("step", 0) >= step):
        assert time.monotonic() < left, tell(run)
        time.sleep(0.1)


def finish(run, seconds=300):
    """Waits for the end of a run, which must be a good one."""
    row = wait(run, lambda row: row["state"] in ("done", "failed", "cancelled"), seconds)
    assert row["state"] == "done", f"{row}\n{tell(run)}"
    return row


def tell(run):
    """What lies in the logs, for a failing test."""
    launch = json.loads((Path(run) / "launch.json").read_text())
    logs = sorted(Path(launch["logs"]).glob(f"{launch.get('job')}*.out"))
    queue = subprocess.run(["squeue", "--long"], capture_output=True, text=True).stdout
    nodes = subprocess.run(["sinfo", "--long"], capture_output=True, text=True).stdout
    return queue + nodes + "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in logs)
