"""What people type, against a real SLURM: submit, status, logs, cancel, resume, sweeps, what comes after; and bad input."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import finish, reach, settings, sslzoo, status, submit, wait

from sslzoo.launch.slurm import _scontrol, ask
from sslzoo.run.folder import Folder
from sslzoo.run.state import State

pytestmark = pytest.mark.slurm


def losses(run):
    return {line["step"]: line["loss"] for line in Folder(Path(run)).metrics.read()}


def test_a_run_is_followed_cancelled_and_resumed(cluster, tmp_path):
    run = tmp_path / "followed"
    job = submit(cluster, run, "crawl", nodes=1)
    reach(run, 10)
    row = status(run)
    assert row["state"] == "running"
    assert row["job"] == job
    assert row["nodes"] in ("n1", "n2")
    assert row["steps"] == 120
    assert row["left"] > 0
    queue = subprocess.run(["squeue", "-h", "-o", "%j %k"], capture_output=True, text=True).stdout
    assert f"sslzoo-ijepa-tiny sslzoo {run}" in queue
    assert "2 processes started by srun" in sslzoo("logs", run)
    assert "Starting with JobEnvironment" in sslzoo("logs", run, "--rank", 1)
    assert "logs of 2 processes" in sslzoo("logs", run, "--rank", 2, fails=True)
    assert f"job {job} is RUNNING" in sslzoo(
        "submit", "tiny/ijepa", "--cluster", cluster / "slow.yaml", "--out", run, *settings(cluster), fails=True
    )
    assert "cancelled" in sslzoo("cancel", run)
    wait(run, lambda row: row["state"] not in ("running", "pending", "starting"))
    sslzoo("resume", run, "--cluster", cluster / "quick.yaml")
    assert finish(run)["restarts"] == 1


def test_a_sweep_is_one_array_whose_failures_stay_alone(cluster, tmp_path):
    out = tmp_path / "sweep"
    # A learning rate that overflows ends its run after three steps; the others go on. What comes after waits for success.
    words = ["--sweep", "optim.lr=1e-3,1e30", "--seeds", 2, "--limit", 2, "--then", "eval --probe knn"]
    words += ["--set", "evaluate.train.length=60", "--set", "evaluate.test.length=40"]
    told = sslzoo(
        "submit",
        "tiny/ijepa",
        "--cluster",
        cluster / "quick.yaml",
        "--out",
        out,
        "--no-evaluate",
        *words,
        *settings(cluster, 20),
        "--json",
    )
    runs = {Path(one["run"]).name: one for one in json.loads(told[: told.rindex("]") + 1])}
    assert set(runs) == {f"optim.lr={lr},run.seed={seed}" for lr in ("0.001", "1.0e_30") for seed in (0, 1)}
    arrays = {one["job"].split("_")[0] for one in runs.values()}
    assert len(arrays) == 1
    for name, one in runs.items():
        row = wait(one["run"], lambda row: row["state"] in ("done", "failed"), 300)
        assert row["state"] == ("failed" if "1.0e" in name else "done"), row
        assert ("not finite" in row["reason"]) == ("1.0e" in name)
    good = [one for name, one in runs.items() if "0.001" in name]
    for one in good:
        (after,) = json.loads((Path(one["run"]) / "launch.json").read_text())["then"]
        for _ in range(120):
            if list((Path(one["run"]) / "eval").glob("*.json")):
                break
            subprocess.run(["sleep", "1"], check=True)
        assert list((Path(one["run"]) / "eval").glob("*.json")), after
    assert len(json.loads(sslzoo("status", out, "--json"))) == 4


def test_a_run_with_shared_weights_goes_from_four_processes_to_two_and_back(cluster, tmp_path, unbroken):
    changing = tmp_path / "changing"
    submit(cluster, changing, more=["--set", "run.shard=2"])
    for nodes, step in ((1, 40), (2, 80)):
        reach(changing, step)
        sslzoo("cancel", changing)
        wait(changing, lambda row: row["state"] not in ("running", "pending", "starting"))
        sslzoo("resume", changing, "--nodes", nodes)
    finish(changing)
    one, other = losses(unbroken), losses(changing)
    assert one.keys() == other.keys()
    assert max(abs(one[step] - other[step]) for step in one) < 1e-5


def test_status_works_without_accounting(cluster, tmp_path, monkeypatch):
    run = tmp_path / "unaccounted"
    job = submit(cluster, run, "quick", nodes=1, steps=4)
    finish(run)
    assert ask([job])[job].state == "COMPLETED"
    assert _scontrol([job])[job].state == "COMPLETED"
    # No sacct on PATH, as where there is no accounting.
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("squeue", "scontrol", "sbatch", "srun"):
        where = subprocess.run(["which", tool], capture_output=True, text=True).stdout.strip()
        (tools / tool).symlink_to(where)
    (tools / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
    (tools / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert status(run)["state"] == "done"
    assert ask([job])[job].state == "COMPLETED"


def test_a_dry_run_prints_the_script_and_the_plan(cluster, tmp_path):
    words = ["--cluster", cluster / "quick.yaml", "--nodes", 2, "--time", "90m", "--out", tmp_path / "run", "--dry-run"]
    told = sslzoo("submit", "tiny/ijepa", *words, *settings(cluster))
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --partition=low",
        "#SBATCH --time=90",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@10",
        f"#SBATCH --comment='sslzoo {tmp_path / 'run'}'",
        "export GLOO_SOCKET_IFNAME=lo",
        f"export PYTHONPATH={tmp_path / 'run' / 'code'}",
        "export PYTHONSAFEPATH=1",
    ):
        assert line in told
    (srun,) = (line for line in told.splitlines() if line.startswith("srun"))
    assert "--cpus-per-task=1 --kill-on-bad-exit=1" in srun
    assert "batch 8 over 4 processes; 2 nodes x 0 GPUs" in told
    assert not (tmp_path / "run").exists()


def test_a_mask_from_a_lone_file_goes_along_as_it_was(cluster, tmp_path, monkeypatch):
    # As from inside another job, whose variables must not reach this one.
    for name, value in {"JOB_ID": "1", "NTASKS": "9", "CPUS_PER_TASK": "7", "STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    sslzoo("new", "mask", "my-stripes", "--file", "--into", tmp_path)
    run, plugin = tmp_path / "stripes", tmp_path / "sslzoo_my_stripes.py"
    more = ["--plugin", plugin, "--set", "masks.image={use: my-stripes}"]
    # Nor do those of the shell that submits it, on a cluster that passes none on; the script's own do.
    (cluster / "bare.yaml").write_text((cluster / "quick.yaml").read_text() + "sbatch: {export: NONE}\n")
    submit(cluster, run, "bare", nodes=1, steps=6, more=more)
    version = hashlib.sha256(plugin.read_bytes()).hexdigest()[:12]
    plugin.write_text("raise RuntimeError('changed after it was submitted')\n")
    assert finish(run)["step"] == 6
    assert version in (run / "recipe.yaml").read_text()
    assert "commit" not in State(run).attempts[-1]["facts"], "it runs the copy of the code, which is no checkout"


def test_a_drill_ends_with_a_verdict(cluster, tmp_path):
    words = settings(cluster, 40)
    told = sslzoo(
        "drill",
        "tiny/ijepa",
        "--cluster",
        cluster / "slow.yaml",
        "--nodes",
        2,
        "--steps",
        40,
        "--out",
        tmp_path / "drill",
        *words,
    )
    assert "bit for bit: this run survives here" in told
    assert ", 0 steps done twice" in told


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("partition: nowhere\ngpus_per_node: 0", "invalid partition"),
        ("account: nobody\ngpus_per_node: 0", "Invalid account"),
        ("partitoin: low", "did you mean partition?"),
        ("time: soon", "a time is wanted"),
        ("gpus_per_node: 4", "SLURM refused the job"),
    ],
)
def test_a_wrong_profile_is_refused_with_its_reason(cluster, tmp_path, line, says):
    (tmp_path / "wrong.yaml").write_text(line + "\n")
    told = sslzoo(
        "submit",
        "tiny/ijepa",
        "--cluster",
        tmp_path / "wrong.yaml",
        "--out",
        tmp_path / "run",
        *settings(cluster),
        fails=True,
    )
    assert says in told
    assert "Traceback" not in told


def test_a_batch_that_does_not_split_is_refused_before_anything_is_written(cluster, tmp_path):
    words = [
        "submit",
        "tiny/ijepa",
        "--cluster",
        cluster / "slow.yaml",
        "--nodes",
        3,
        "--out",
        tmp_path / "run",
        *settings(cluster),
    ]
    assert "cannot be split evenly over 6 processes" in sslzoo(*words, fails=True)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_ends_a_run_with_its_reason_and_loses_no_checkpoint(cluster, tmp_path):
    run = tmp_path / "full"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(run)], check=True)
    try:
        # Milestones keep every checkpoint, so the disk fills up after a few.
        submit(
            cluster, run, "quick", nodes=1, more=["--set", "run.milestones=10", "--set", "run.save_every=10"], steps=118
        )
        row = wait(run, lambda row: row["state"] in ("done", "failed"))
        assert row["state"] == "failed"
        assert "could not be written" in row["reason"]
        from sslzoo.run import checkpoint

        kept = checkpoint.newest(run / "checkpoints", print)
        assert kept is not None
        assert kept.step >= 10
    finally:
        subprocess.run(["umount", "-l", str(run)], check=True)


def test_a_process_that_dies_ends_the_job_with_its_own_error(cluster, tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os\nfrom sslzoo import hookimpl\nimport sslzoo.run.data as data\nwhole = data.weigh\n"
        "def weigh(batches, world):\n    if world.rank == 3: raise ValueError('rank three has had enough')\n    return whole(batches, world)\n"
        "data.weigh = weigh\n@hookimpl\ndef sslzoo_masks(): return {}\n"
    )
    run = tmp_path / "dying"
    submit(cluster, run, "quick", more=["--plugin", str(tmp_path / "dies.py")])
    row = wait(run, lambda row: row["state"] in ("done", "failed"))
    assert row["state"] == "failed"
    assert row["reason"] == "ValueError: rank three has had enough"
    assert "this arose in the plugin" in sslzoo("logs", run)
    # Its own traceback is the only one; and the code that ran is that of the run folder.
    assert "another process failed first: ValueError: rank three has had enough" in sslzoo("logs", run)
    assert sslzoo("logs", run, "--rank", 1).count("Traceback") == 1
    assert f'File "{Path(State(run).launch["code"]) / "sslzoo" / "train.py"}"' in sslzoo("logs", run, "--rank", 3)
    assert "rank three has had enough" in sslzoo("logs", run)
