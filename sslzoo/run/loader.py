"""How are batches made ahead of the steps that take them? Processes of their own, how far ahead, and how they end."""

from __future__ import annotations

import math
import os
import resource
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from sslzoo.contracts import Batch, Dataset
from sslzoo.errors import UserError
from sslzoo.run.data import Micros

Made = TypeVar("Made")
SHARED = 2**30  # bytes of batches that the workers of a process hold at most


@dataclass(frozen=True)
class Ahead:
    """How far a process's loader workers run ahead. What they hold lies in shared memory, /dev/shm."""

    workers: int
    prefetch: int  # micro-batches of each worker
    size: int  # bytes of a micro-batch
    asked: int  # workers

    def __str__(self) -> str:
        held = self.workers * self.prefetch * self.size / 1e9
        fewer = f" of {self.asked} asked for" if self.workers < self.asked else ""
        each = f"{self.prefetch} micro-batches ahead each: up to {held:.2g} GB of /dev/shm"
        return f"{self.workers} loader workers{fewer}, {each}"


def ahead(micros: Micros, workers: int, local_size: int = 1) -> Ahead:
    """Four micro-batches for each worker, or as many as SHARED bytes hold; then as many workers.

    Batches are the same however many are made ahead, and whoever makes them. Where /dev/shm has less left (64 MB in
    some containers), the `local_size` processes of a node share it.
    """
    most = min(SHARED, room(local_size))
    views = micros.sources.views.values()
    pixels = sum(each.count * math.prod(each.view.size) * (1 if hasattr(each.view, "mean") else 4) for each in views)
    size = 3 * micros.shares.micro * pixels
    prefetch = max(1, min(4, most // (max(1, workers) * size)))
    return Ahead(min(workers, max(1, most // size)), prefetch, size, workers)


def room(local_size: int, shared: Path = Path("/dev/shm")) -> int:
    """Bytes of shared memory that each process of this node may hold, with as much again on its way."""
    try:
        left = os.statvfs(shared)
    except OSError:  # no such folder: torch has another way
        return SHARED
    return left.f_bavail * left.f_frsize // (2 * local_size)


def allow_files() -> None:
    """Lets this process and its workers open as many files as the system allows them: each tensor on its way is one.

    Shells often give 1,024, and SLURM hands a shell's limits on; some dozens of workers reach that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**16 if hard == resource.RLIM_INFINITY else min(2**16, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def remarks(data: Dataset, found: Mapping[str, Any], ahead: Ahead) -> list[str]:
    """What decodes the files of a data set of this identity, its own advice, and what the loader may hold."""
    said = [f"JPEG files are decoded by {found['decoder']}"] if "decoder" in found else []
    said += [advice] if (advice := getattr(data, "advice", "")) else []
    return [*said, str(ahead) if ahead.workers else "batches are made by the training process itself"]


def load(micros: Micros, start: int, steps: int, ahead: Ahead, pin: bool) -> Iterator[Batch]:
    """Micro-batches of steps start .. steps-1, in order, made by the workers of `ahead` (0: by this process)."""
    each, workers = micros.shares.accumulate, ahead.workers
    if workers:
        allow_files()
    return map(
        passed,
        DataLoader(
            micros,
            batch_size=None,
            sampler=range(start * each, steps * each),
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=ahead.prefetch if workers else None,
            worker_init_fn=deaf if workers else None,
            multiprocessing_context="fork" if workers else None,  # plugin files cannot be imported by name elsewhere
        ),
    )


def passed(made: Made | UserError) -> Made:
    """What a loader's worker made; raises the person's mistake that it returned instead."""
    if isinstance(made, UserError):
        raise made
    return made


def deaf(_worker: int) -> None:
    """Signals for the whole job, such as SLURM's before a preemption, must not kill workers that are still needed.

    TERM is heard from the parent process alone: so it ends them when it leaves, and would wait for ever for deaf ones.
    """
    for one in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _leave_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
