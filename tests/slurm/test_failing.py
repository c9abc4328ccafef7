"""One process fails while the others are blocked where no signal and no exception reaches them, as under NCCL."""

import subprocess
import time
from pathlib import Path

import pytest
from conftest import finish, reach, sslzoo, submit, tell, wait

from sslzoo.launch.drill import compare
from sslzoo.launch.slurm import ask

pytestmark = pytest.mark.slurm

# At some step one process does what it is told, in the first attempt only; later the others stop dead: a sleep in C, all
# signals blocked, the interpreter's lock held.
TROUBLE = """
import ctypes, os, signal, time
from sslzoo import hookimpl
import sslzoo.run.data as data
whole, steps = data.weigh, [0]

def weigh(batches, world):
    steps[0] += 1
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        if world.rank == RANK and steps[0] == STEP:
            WHAT
        if world.rank != RANK and steps[0] == BLOCKED:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)
            ctypes.PyDLL(None).sleep(3600)
    return whole(batches, world)

data.weigh = weigh

@hookimpl
def sslzoo_log(metrics, at, folder):
    pass
"""


@pytest.fixture(autouse=True)
def _nobody_stays_blocked(cluster):
    """Processes that no signal reaches but one would outlive a failing test, and the cluster, with their ports."""
    yield
    subprocess.run(["scancel", "--full", "--signal=KILL", "--state=RUNNING", "--user=root"], check=False)


def trouble(tmp_path, what, rank=3, step=40, blocked=40):
    text = TROUBLE.replace("WHAT", what)
    for word, value in {"RANK": rank, "STEP": step, "BLOCKED": blocked}.items():
        text = text.replace(word, str(value))
    (tmp_path / "trouble.py").write_text(text)
    return ["--plugin", str(tmp_path / "trouble.py")]


def ended(run, job, state, seconds=90):
    """Waits for the end of a job; it comes within a minute of the trouble, with some room for a busy machine."""
    left = time.monotonic() + seconds
    while job in ask([job]) and not ask([job])[job].ended:
        assert time.monotonic() < left, tell(run)
        time.sleep(1)
    assert ask([job])[job].state == state, tell(run)


def test_an_exception_on_one_rank_ends_the_job_though_the_others_are_blocked(cluster, tmp_path):
    run = tmp_path / "run"
    job = submit(cluster, run, "quick", more=trouble(tmp_path, "raise ValueError('rank three has had enough')"))
    reach(run, 30)
    ended(run, job, "FAILED")
    row = wait(run, lambda row: row["state"] == "failed")
    assert row["reason"] == "ValueError: rank three has had enough"
    assert row["restarts"] == 0
    assert "this arose in the plugin" in sslzoo("logs", run)


def test_a_run_with_a_process_that_is_killed_goes_on_though_the_others_are_blocked(cluster, unbroken, tmp_path):
    run = tmp_path / "run"
    submit(cluster, run, "quick", more=trouble(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)"))
    row = finish(run)
    assert (
        row["restarts"] >= 1
    )  # SLURM may kill the same step once more, when a node was late to answer: nothing is lost
    assert compare(unbroken, run).exact


def test_a_run_with_a_process_that_is_stopped_goes_on(cluster, unbroken, tmp_path):
    run = tmp_path / "run"
    text = (cluster / "quick.yaml").read_text().replace("environment: {", 'environment: {SSLZOO_PATIENCE: "20", ')
    (cluster / "hasty.yaml").write_text(text)
    submit(cluster, run, "hasty", more=trouble(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)", blocked=0))
    row = finish(run)
    assert (
        row["restarts"] >= 1
    )  # SLURM may kill the same step once more, when a node was late to answer: nothing is lost
    assert compare(unbroken, run).exact


def test_a_full_disk_on_the_first_rank_ends_the_job_though_the_others_are_blocked(cluster, tmp_path):
    run = tmp_path / "full"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(run)], check=True)
    try:
        # The save of step 50 fails at the latest; the others wait for step 51.
        (tmp_path / "fill.sh").write_text(f"head -c 32M /dev/zero > {run / 'filler'}")
        fill = f"os.system('sh {tmp_path / 'fill.sh'}')"
        job = submit(cluster, run, "quick", more=trouble(tmp_path, fill, rank=0, step=30, blocked=51))
        reach(run, 28)
        ended(run, job, "FAILED")
        assert (run / "failure.txt").exists()
        assert len(list(Path(run, "checkpoints").glob("*.safetensors"))) == 1
        assert (run / "filler").stat().st_size > 0
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)
