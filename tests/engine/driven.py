"""Runs of toy recipes in processes of their own, and what they left behind."""

import os
import subprocess
import sys
from pathlib import Path

from sslzoo.run import checkpoint
from sslzoo.run.folder import Folder

HERE = Path(__file__).parent


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
