"""Which processes train together? How they find one another, agree, and learn that others are gone."""

from __future__ import annotations

import os
import re
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from sslzoo.errors import RunError, UserError
from sslzoo.run.state import restarts

# What CUDA says of hardware that failed, not of a program: another start, maybe on another node, may do.
_BROKEN = ("ECC error", "NVLink error", "hardware stack error", "busy or unavailable", "system not yet initialized")


class LostContact(RunError):  # noqa: N818 - what happened, as Stopped
    """Other processes are gone, or never came, and left no error: a node was lost, or something killed them."""

    exit_code = 75  # what `sysexits.h` calls a temporary failure: trying again may do


@dataclass(frozen=True)
class World:
    """Where this process stands among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    launcher: str = "alone"  # alone, torchrun or srun
    store: Store | None = field(default=None, repr=False, compare=False)  # where the processes met
    local_size: int = 1  # processes of this node, this one among them
    alone_as: Literal["none", "ddp", "fsdp"] = "none"  # what one process does as if it were several, to time it

    def __str__(self) -> str:
        if self.size == 1:
            return f"one process, on {self.device}"
        return f"{self.size} processes started by {self.launcher}, on {self.device.type}"

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def join(device: str = "auto", processes: int | None = None, *, gpus: bool = False) -> World:
    """Joins the processes that a launcher started: torchrun, or srun on SLURM; or finds itself alone.

    `device` is auto, cpu or cuda, as `run.device`. `processes` is how many there should be, if that is known. With
    `gpus`, or where SLURM gave some, each must have one.

    Raises:
        RunError: the launcher's environment is incomplete or says another number of processes, a GPU is missing, or
            two processes have one. There is no going on alone, or without a GPU.
        LostContact: some did not come, or could not be reached.
    """
    launcher, rank, size, local = launched()
    if processes is not None and size != processes:
        wanted = "1 process was" if processes == 1 else f"{processes} processes were"
        raise RunError(f"{wanted} asked for, but {launcher} started {size}")
    chosen = _device(device, local, gpus or _given_gpus())
    if size == 1:
        return World(rank, size, chosen, launcher)
    try:
        store, here = _meet(rank, size, chosen)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=patience(), device_id=_id(chosen)
        )
    except RunError:
        raise
    except ValueError as error:  # of the environment, such as no MASTER_ADDR; DistError and time-outs are no such
        raise RunError(f"rank {rank} of {size} could not join the others: {error}") from error
    except Exception as error:
        raise LostContact(f"rank {rank} of {size} could not join the others: {error}") from error
    return World(rank, size, chosen, launcher, store, here)


@contextmanager
def lone_group(world: World, parallel: Literal["none", "ddp", "fsdp"]) -> Iterator[World]:
    """One process as a group of its own, so that what distributing costs beside the sending can be measured.

    Raises:
        RunError: there are several processes, which are distributed as their recipe says.
    """
    if parallel == "none":
        yield world
        return
    if world.size > 1:
        raise RunError(f"one process is wrapped as if it were several; found {world}: leave --parallel out")
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=_id(world.device))
    try:
        yield replace(world, alone_as=parallel)
    finally:
        leave()


def patience() -> timedelta:
    """How long processes wait for each other, at the start and in every collective, before they are taken for lost.

    Raises:
        RunError: SSLZOO_PATIENCE is no number of seconds.
    """
    return timedelta(seconds=_number(os.environ, "SSLZOO_PATIENCE", "600", least=1))


def launched() -> tuple[str, int, int, int]:
    """Who started this process, its rank, how many there are, and its rank on this node; from the environment alone.

    Under srun, sets the address where the processes meet: the job's first node, and a port from the numbers of the
    job, its step and its attempt.

    Raises:
        RunError: the environment is incomplete, or says what is no number.
    """
    env = os.environ
    if _number(env, "WORLD_SIZE", "1", least=1) > 1:
        return _by_torchrun(env)
    # A batch script has no step, and an interactive shell a step with a number near 2 ** 32.
    in_step = "SLURM_STEP_ID" in env and _number(env, "SLURM_STEP_ID") < 2**31
    if in_step and _number(env, "SLURM_STEP_NUM_TASKS", "1", least=1) > 1:
        return _by_srun(env)
    return "alone", 0, 1, 0


def _by_torchrun(env: MutableMapping[str, str]) -> tuple[str, int, int, int]:
    if not {"RANK", "LOCAL_RANK"} <= set(env):
        raise RunError("WORLD_SIZE is set but RANK or LOCAL_RANK is not: start with torchrun, or unset WORLD_SIZE")
    size = _number(env, "WORLD_SIZE")
    return "torchrun", _number(env, "RANK", most=size - 1), size, _number(env, "LOCAL_RANK")


def _by_srun(env: MutableMapping[str, str]) -> tuple[str, int, int, int]:
    size = _number(env, "SLURM_STEP_NUM_TASKS")
    rank, local, job, step = (_number(env, f"SLURM_{name}") for name in ("PROCID", "LOCALID", "JOB_ID", "STEP_ID"))
    if rank >= size or not env.get("SLURM_STEP_NODELIST"):
        raise RunError(f"SLURM_PROCID is {rank} of {size} and SLURM_STEP_NODELIST {env.get('SLURM_STEP_NODELIST')!r}")
    meeting = {"MASTER_ADDR": _first_host(env["SLURM_STEP_NODELIST"]), "MASTER_PORT": _port(job, step)}
    meeting |= {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": size}  # asked again, it answers the same
    for name, value in meeting.items():
        env.setdefault(name, str(value))
    return "srun", rank, size, local


def _number(env: Mapping[str, str], name: str, default: str | None = None, *, least: int = 0, most: int = 2**32) -> int:
    """A whole number of the environment."""
    text = env.get(name, default)
    if text is None:
        raise RunError(f"the environment variable {name} is missing: start with torchrun or srun")
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
        to = f" to {most}" if most < 2**32 else ""
        raise RunError(f"the environment variable {name} is {text[:80]!r}; a whole number from {least}{to} is wanted")
    return int(text)


def _first_host(nodes: str) -> str:
    """The first of a list such as gpu[07-09,12],login1 or rack[1-2]_gpu[0-3]."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "")


def _port(job: int, step: int) -> int:
    """A port below the ephemeral ones; jobs that share a node differ, as do steps of a job and attempts of one."""
    return 12000 + (job + 7919 * step + 104729 * restarts()) % 20000


def _meet(rank: int, size: int, device: torch.device) -> tuple[Store, int]:
    """Where all processes meet, and how many are of this node; each tells what it computes on, before any waits.

    Raises:
        LostContact: some stayed away.
        RunError: their devices do not go together.
    """
    store, *_ = next(rendezvous("env://", rank, size, timeout=patience()))
    uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    store.set(f"device/{rank}", f"{socket.gethostname()}|{device.type}|{uuid}")
    _see_all(store, "device", size, patience())
    found = [tuple(store.get(f"device/{other}").decode().split("|")) for other in range(size)]
    if len({kind for _, kind, _ in found}) > 1:
        without = ", ".join(sorted({host for host, kind, _ in found if kind == "cpu"}))
        raise RunError(
            f"some processes have a GPU and some have none (on {without}); all must compute on the same kind"
        )
    shared = sorted({f"{host} {uuid}" for host, _, uuid in found if uuid and found.count((host, "cuda", uuid)) > 1})
    if shared:
        raise RunError(f"several processes were given one GPU: {', '.join(shared)}; ask for one process a GPU")
    return store, sum(host == socket.gethostname() for host, *_ in found)


def _see_all(store: Store, what: str, size: int, within: timedelta) -> None:
    """Waits until every rank has told something; raises LostContact with those that have not."""
    keys = {rank: f"{what}/{rank}" for rank in range(size)}
    try:
        store.wait(list(keys.values()), within)
    except (RuntimeError, ValueError) as error:  # DistStoreError is a RuntimeError
        away = [str(rank) for rank, key in keys.items() if not _has_come(store, key)]
        raise LostContact(
            f"after {within.total_seconds():.0f} seconds, of {size} processes these have not come: rank "
            f"{', '.join(away) or '?'}"
        ) from error


def _has_come(store: Store, key: str) -> bool:
    try:
        return store.check([key])
    except RuntimeError:
        return False


def lost_contact(error: BaseException, world: World, explained: Callable[[], bool], wait: float = 15.0) -> bool:
    """Whether an error only says that other processes are gone: by its type, by where it arose, and by who answers.

    Collectives raise errors of their own type (NCCL), or plain RuntimeErrors in torch.distributed (gloo). One in the
    backward may be either a collective's or the computation's: then all processes are called, and where every one
    answers, none is gone. `explained`: another process has told its error, so there is no need to call.
    """
    if world.size == 1 or isinstance(error, UserError):
        return False
    if isinstance(error, dist.DistError):
        return True
    if type(error) is not RuntimeError:  # what computations raise on purpose, and memory that ran out, have other types
        return False
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename).as_posix()
    if "/torch/distributed/" in file or file.endswith("/torch/nn/parallel/distributed.py"):
        return True
    if "/torch/autograd/" not in file or world.store is None:
        return False
    return explained() or not _all_answer(world.store, world, wait)


def broken(error: BaseException) -> bool:
    """Whether CUDA says that the hardware failed."""
    return isinstance(error, torch.AcceleratorError) and any(words in str(error) for words in _BROKEN)


def _all_answer(store: Store, world: World, wait: float) -> bool:
    """Whether every process failed here, and so lives."""
    try:
        store.set(f"failed/{world.rank}", "here")
        _see_all(store, "failed", world.size, timedelta(seconds=wait))
    except (RunError, RuntimeError):
        return False
    return True


def gather_objects(what: Any, world: World) -> list[Any]:
    """What each rank says, in their order."""
    if world.size == 1:
        return [what]
    said: list[Any] = [None] * world.size
    dist.all_gather_object(said, what)
    return said


def agree(what: str, world: World, must: str) -> None:
    """Sees that all ranks say the same, in words that show how they differ; `must` says what all are to do.

    Raises:
        RunError: they do not; tells what each says.
    """
    said = gather_objects((socket.gethostname(), what), world)
    if len({word for _, word in said}) > 1:
        rows = "".join(f"\n    rank {rank} on {host}: {word}" for rank, (host, word) in enumerate(said))
        raise RunError(f"the processes do not {must}, so none starts:{rows}")


def leave() -> None:
    """Leaves the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _given_gpus() -> bool:
    """Whether SLURM gave this job GPUs."""
    listed = any(os.environ.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS"))  # of one GPU that is "0"
    return listed or os.environ.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0")


def _device(wanted: str, local: int, gpus: bool = False) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not gpus and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        asked = "this job asked for GPUs" if wanted == "auto" else f"device {wanted}"
        built = "" if torch.version.cuda else "; this PyTorch was built without CUDA"
        raise RunError(
            f"{asked}: no GPU is visible on {socket.gethostname()}{built}\n"
            "see what nvidia-smi says there; run.device: cpu trains without"
        )
    count = torch.cuda.device_count()
    if local >= count > 1:
        raise RunError(f"local rank {local} has no GPU of its own: {count} visible here")
    device = torch.device("cuda", 0 if count == 1 else local)  # launchers may show each process its own alone
    torch.cuda.set_device(device)
    return device


def _id(device: torch.device) -> torch.device | None:
    return device if device.type == "cuda" else None
