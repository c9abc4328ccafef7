"""What engine tests share: they load no installed plugin, only the toys."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from toy_recipes import write

from sslzoo.run import checkpoint
from sslzoo.run.folder import Folder

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _only_toys(monkeypatch):
    monkeypatch.setenv("SSLZOO_PLUGINS", "optimizers")


@pytest.fixture
def toy(tmp_path):
    """Writes toy recipes into the test's folder."""
    return lambda method, name="toy": write(tmp_path, method, name)


def drive(out, *words, ranks=1, **options):
    """Runs drive.py in a process of its own, or in several under torchrun."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(HERE / "drive.py"), str(out), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)


def weights(run):
    """Final weights of a run folder, without the optimizer's state."""
    tensors = checkpoint.newest(Folder(run).checkpoints, print).tensors
    return {name: value for name, value in tensors.items() if name.startswith("method.")}


def losses(run):
    """Losses by step."""
    return {line["step"]: line["loss"] for line in Folder(run).metrics.read()}


def on_ranks(function, ranks=2):
    """What a function of a test module, called with its rank, returns on each of several processes (gloo)."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_on_rank, (function, ranks, folder), ranks)
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(ranks)]


def _on_rank(rank, function, ranks, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.save(function(rank), Path(folder) / str(rank))
    torch.distributed.destroy_process_group()
