"""What survives a kill? One file a checkpoint: written whole, checked when read, and safe to open.

A checkpoint is the method's state dict, the optimizer's state by parameter name, and the number of steps done;
randomness needs no state. A kill during a save leaves the checkpoints before it (`run/tensors.py`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslzoo.errors import RunError
from sslzoo.run import tensors as tensorfile
from sslzoo.run.optim import trainable
from sslzoo.run.parallel import full_tensor, split_as
from sslzoo.run.processes import World
from sslzoo.step import Method

NAME = re.compile(r"step-(\d{9})\.safetensors")


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose checksum was right: steps done, its tensors by name, and what was told about its run."""

    step: int
    path: Path
    tensors: Mapping[str, Tensor]  # on the meta device where the first rank sends them
    checksum: int
    about: Mapping[str, str] = field(default_factory=dict)
    to: torch.device | None = None  # where the first rank sends them to, and itself

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor by name. Of those that are sent one is held at a time; all ranks must ask for all of them."""
        for name, kept in self.tensors.items():
            if self.to is None:
                yield name, kept
                continue
            value = torch.empty_like(kept, device=self.to) if kept.is_meta else kept.to(self.to)
            dist.broadcast(value, 0)
            yield name, value
            del value


def save(
    folder: Path,
    step: int,
    method: Method,
    optimizer: torch.optim.Optimizer,
    about: Mapping[str, str] | None = None,
    *,
    write: bool = True,
) -> Path:
    """Writes the checkpoint of `step` steps done, and texts about its run; when this returns, it is on disk.

    Every rank calls it, since weights may be split over ranks; one has `write`.

    Raises:
        RunError: it could not be written, such as on a full disk; earlier checkpoints are untouched. Or the optimizer
            keeps state that could not be restored.
    """
    tensors = _snapshot(method, optimizer, write, {})
    if write:
        tensorfile.write(path_of(folder, step), tensors, ("step", str(step)), about or {})
    return path_of(folder, step)


@dataclass
class Saver:
    """Saves while the run goes on: the step waits for a copy of its tensors alone; a thread checksums and writes it.

    Every rank has one, since weights may be split over ranks; one has `write`. The copies are kept for the next save
    (page-locked beside a GPU), so a run holds its checkpoint once in the host's memory.
    """

    folder: Path
    keep: int
    milestone: int | None
    on_saved: Callable[[int, float], None] = lambda *_: None  # in the main thread: a step that is on disk, and seconds
    write: bool = True
    _copies: dict[str, Tensor] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _error: Exception | None = None
    _done: tuple[int, float] | None = None

    def save(
        self, step: int, method: Method, optimizer: torch.optim.Optimizer, about: Mapping[str, str] | None = None
    ) -> None:
        """Begins to save `step` steps done, once the save before it is on disk; older ones are pruned after it.

        Raises:
            RunError: the save before could not be written.
        """
        self.join()
        since = time.perf_counter()
        self._copies = _snapshot(method, optimizer, self.write, self._copies)
        if self.write:
            # Not a daemon: a process that fails elsewhere still finishes the save it began, unless others wait for it.
            self._thread = threading.Thread(
                target=self._finish, args=(step, about or {}, since), name=f"save of step {step}"
            )
            self._thread.start()

    def poll(self) -> None:
        """Tells of the last save as soon as it is on disk, without waiting for it; raises RunError as `join`."""
        if self._thread is not None and not self._thread.is_alive():
            self.join()

    def join(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            RunError: it could not be written, such as on a full disk; earlier checkpoints are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._done is not None:
            done, self._done = self._done, None
            self.on_saved(*done)

    def _finish(self, step: int, about: Mapping[str, str], since: float) -> None:
        try:
            tensorfile.write(path_of(self.folder, step), self._copies, ("step", str(step)), about)
            prune(self.folder, step, self.keep, self.milestone)
            self._done = step, time.perf_counter() - since
        except Exception as error:  # told by the main thread, in `join`
            self._error = error


def remove_torn(folder: Path) -> None:
    """Removes what a kill left of `save`; everything else stays."""
    for left in folder.glob("step-*.writing"):
        if NAME.match(left.name.replace(".writing", ".safetensors")):
            left.unlink(missing_ok=True)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, damaged ones included, oldest first."""
    found = (NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def path_of(folder: Path, step: int) -> Path:
    """The file of a step's checkpoint."""
    return folder / f"step-{step:09d}.safetensors"


def read(path: Path) -> Saved:
    """Reads a checkpoint.

    Raises:
        RunError: it is damaged.
    """
    found = tensorfile.read(path, "step", "checkpoint")
    if path.name != f"step-{found.name:0>9}.safetensors":
        raise RunError(f"checkpoint {path} is damaged: it is that of step {found.name}, renamed")
    return Saved(int(found.name), path, found.tensors, found.checksum, found.about)


def newest(folder: Path, warn: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that can be read, or None where none was ever saved; `warn` hears of damaged ones.

    Raises:
        RunError: there are checkpoints, but none can be read.
    """
    damaged = []
    for step in reversed(steps(folder)):
        try:
            return read(path_of(folder, step))
        except RunError as error:
            damaged.append(str(error))
            warn(str(error))
    if damaged:
        raise RunError(
            f"none of the {len(damaged)} checkpoints in {folder} can be read, and a run never starts again by itself; "
            "restore one, or choose another folder with --out"
        )
    return None


def refuse_folders(folder: Path, done: int) -> None:
    """Sees that a run which goes on after `done` steps can save; changes nothing.

    Raises:
        RunError: a folder has the name of a later checkpoint, which could only be noticed when it is saved.
    """
    for step in steps(folder):
        if step > done and path_of(folder, step).is_dir():
            raise RunError(f"{path_of(folder, step)} is a folder, where a checkpoint will be written: move it away")


def agreed(folder: Path, warn: Callable[[str], None], world: World) -> Saved | None:
    """`newest`, read and checked by the first rank alone and sent to the others: all start from one, or none does.

    Its tensors are sent while it is restored (`Saved.each`): the others never hold it whole beside their weights.

    Raises:
        RunError: as `newest`, on every rank.
    """
    if world.size == 1 or not dist.is_initialized():
        return newest(folder, warn)
    saved: Saved | None = None
    sent: list[Any] = [None]
    if world.first:
        try:
            saved = newest(folder, warn)
            sent = [saved and (saved.step, saved.path, _listed(saved), saved.checksum, saved.about)]
        except RunError as error:
            sent = [str(error)]
    dist.broadcast_object_list(sent, 0, device=world.device)
    word: Any = sent[0]
    if isinstance(word, str):
        raise RunError(word)
    if word is None:
        return None
    step, path, listed, checksum, about = word
    coming = {name: torch.empty(shape, dtype=dtype, device="meta") for name, dtype, shape in listed}
    return Saved(step, path, saved.tensors if saved else coming, checksum, about, world.device)


def _listed(saved: Saved) -> list[tuple[str, torch.dtype, torch.Size]]:
    return [(name, value.dtype, value.shape) for name, value in saved.tensors.items()]


def restore(saved: Saved, method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint into a method and optimizer.

    Raises:
        RunError: names or shapes differ from the recipe's parts; nothing is left out silently.
    """
    own, known = _weights(saved, method), dict(trainable(method))
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    states = {key: key.split(".", 2)[1:] for key in saved.tensors if key.startswith("optim.")}
    for key, (what, name) in states.items():
        value = saved.tensors[key]
        if name not in known or _lost_in_pieces(value, known[name], optimizer):
            raise RunError(f"checkpoint {saved.path} does not fit the recipe: optimizer state {what} of {name}")
    for key, value in saved.each():
        if key in own:
            own[key].copy_(split_as(value, own[key]))
        if key not in states:
            continue
        what, name = states[key]
        # Fused kernels keep the count of steps beside the weights.
        like = known[name]
        if what.startswith("group:"):
            groups[like][what.removeprefix("group:")] = value.to("cpu", copy=True)
        elif what.startswith("number:"):
            optimizer.state[like][what.removeprefix("number:")] = value.item()
        else:
            whole = value.shape == like.shape and what != "step"
            optimizer.state[like][what] = split_as(value, like) if whole else value.to(like.device, copy=True)


def restore_parts(saved: Saved, method: Method) -> None:
    """Puts the weights of a checkpoint into a method; raises RunError as `restore`."""
    own = _weights(saved, method)
    for key, value in saved.each():
        if key in own:
            own[key].copy_(split_as(value, own[key]))


def _weights(saved: Saved, method: Method) -> dict[str, Tensor]:
    """The method's own weights by their names in a checkpoint, if it has just these."""
    own = {f"method.{name}": x for name, x in method.state_dict().items()}
    found = {name: x.shape for name, x in saved.tensors.items() if name.startswith("method.")}
    faults = [f"{name} is missing" for name in own.keys() - found.keys()]
    faults += [f"{name} is not the recipe's" for name in found.keys() - own.keys()]
    faults += [
        f"{name} is {list(found[name])}, the recipe's {list(x.shape)}"
        for name, x in own.items()
        if name in found and found[name] != x.shape
    ]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise RunError(f"checkpoint {saved.path} does not fit the recipe: {'; '.join(sorted(faults)[:8])}{more}")
    return own


def prune(folder: Path, saved: int, keep: int, milestone: int | None) -> None:
    """Deletes all but the last `keep` checkpoints up to the step just saved and those at multiples of `milestone`.

    Later ones are damaged, else the run had begun there; they must not take the room of good ones.
    """
    for step in [step for step in steps(folder) if step <= saved][:-keep]:
        if not (milestone and step % milestone == 0):
            with suppress(OSError):  # one that cannot be removed is not worth a run
                path_of(folder, step).unlink(missing_ok=True)


def _snapshot(
    method: Method, optimizer: torch.optim.Optimizer, write: bool, copies: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copies on the CPU, into `copies` where there are, tied weights twice; nothing where nobody writes."""
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in trainable(method):
        for what, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and _lost_in_pieces(value, parameter, optimizer):
                raise RunError(
                    f"state {what!r} of the optimizer, {list(value.shape)} for {name} {list(parameter.shape)}, cannot "
                    "be saved: an optimizer with `shards = True` keeps tensors of the weight's own shape, or of none"
                )
            if isinstance(value, Tensor):
                tensors[f"optim.{what}.{name}"] = value
            else:
                tensors[f"optim.number:{what}.{name}"] = torch.tensor(value)
        if (count := groups[parameter].get("step")) is not None:  # timm counts by group
            tensors[f"optim.group:step.{name}"] = torch.as_tensor(count)
    found, waiting = {}, False
    for name, value in tensors.items():
        full = full_tensor(value.detach())  # one whole tensor after the other; all ranks take part
        if not write:
            continue
        found[name] = copies[name] if name in copies else _room(full)
        found[name].copy_(full, non_blocking=True)
        waiting |= full.device.type == "cuda"
    if waiting:
        torch.cuda.current_stream().synchronize()
    return found


def _lost_in_pieces(state: Tensor, weight: Tensor, optimizer: torch.optim.Optimizer) -> bool:
    """Whether nobody knows how to split this state where the weight is split; whole weights may have any."""
    return getattr(optimizer, "shards", False) and state.ndim > 0 and state.shape != weight.shape


def _room(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")
