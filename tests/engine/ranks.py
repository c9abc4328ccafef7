"""Functions of tests on several processes. A module of its own: they import it by name, and many are called conftest."""

import tempfile
from pathlib import Path

import torch


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
