"""Does a run stay healthy, and did anybody ask it to stop? Votes of all ranks, and images that cannot be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslzoo import files
from sslzoo.contracts import Batch
from sslzoo.errors import RunError
from sslzoo.progress import Progress
from sslzoo.run.folder import Folder
from sslzoo.run.parallel import all_sum
from sslzoo.run.processes import World
from sslzoo.run.stop import Stop

Say = Callable[[str], None]


@dataclass(frozen=True)
class Vote:
    """What all ranks found of a step: whether its numbers were bad, and whether anybody asked to stop."""

    at: Progress
    samples: tuple[int, ...]  # images of this rank
    bad: bool
    stop: bool


@dataclass
class Votes:
    """Sums the votes of all ranks, one sum a step, without waiting for the device.

    On a GPU a sum is read a fixed number of steps later, when it has long arrived: so no step waits, and all ranks
    learn of it at the same step.
    """

    pending: deque[tuple[Progress, tuple[int, ...], Tensor, Any]] = field(default_factory=deque)

    def cast(self, at: Progress, samples: tuple[int, ...], bad: Tensor, stop: bool) -> Tensor:
        """Adds this rank's vote to the others'; returns how many ranks found numbers bad, on the device."""
        votes = all_sum(torch.stack([bad, torch.full_like(bad, stop)]))
        copied, done = votes.to("cpu", non_blocking=True), None
        if votes.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self.pending.append((at, samples, copied, done))
        return votes[0]

    def counted(self, later: int) -> Iterator[Vote]:
        """The votes of all steps but the last few, each once."""
        while len(self.pending) > later:
            at, samples, copied, done = self.pending.popleft()
            if done is not None:
                done.synchronize()
            bad, stop = copied.tolist()
            yield Vote(at, samples, bool(bad), bool(stop))


def later(device: str) -> int:
    """Steps after which votes are read: enough that a GPU never waits; no more, for a stop is later by as many."""
    return 2 if device == "cuda" else 0


@dataclass
class Guard:
    """Sees that numbers stay finite, and whether anybody asked to stop.

    A step that is not finite changes no weights; its images are written to nonfinite/; three in a row end the run.
    """

    folder: Folder
    world: World
    stop: Stop
    limit: int = 3
    row: int = 0
    stopping: str = ""
    votes: Votes = field(default_factory=Votes)

    def check(self, at: Progress, loss: Tensor, norm: Tensor, batches: list[Batch]) -> Tensor:
        """Whether loss and gradients of all ranks are finite, 0-d bool on the device."""
        bad = (~(loss.isfinite() & norm.isfinite())).float()
        samples = tuple(index for batch in batches for index in batch.samples)
        found = self.votes.cast(at, samples, bad, bool(self.stop.asked))
        self.settle(later=later(found.device.type))
        return found == 0

    def settle(self, later: int = 0) -> None:
        """Deals with the votes of all steps but the last few.

        Raises:
            RunError: too many steps in a row were not finite.
        """
        for vote in self.votes.counted(later):
            self.row = self.row + 1 if vote.bad else 0
            if vote.bad:
                path = list_images(self.folder, vote, self.world.rank)
                self._limit(vote.at, path)
            if vote.stop:
                self.stopping = f"stopped by {self.stop.asked or 'a signal to another process'}"

    def _limit(self, at: Progress, path: Path) -> None:
        if self.row >= self.limit:
            raise RunError(
                f"{self.row} steps in a row, the last of them step {at.step + 1}, had a loss or gradient that is not "
                f"finite; the images of their batches are listed in {path}; lower the learning rate, clip gradients "
                "(optim.clip), or try run.precision: fp32"
            )


def list_images(folder: Folder, vote: Vote, rank: int) -> Path:
    """Writes down the images of a step that was not finite; returns the folder of such lists."""
    path = folder.path / "nonfinite"
    text = "\n".join(map(str, vote.samples)) + "\n"
    files.make_folder(path)
    files.write_whole(path / f"step-{vote.at.step + 1:09d}-rank-{rank}.txt", text, lasting=False)
    return path


ENOUGH = 100  # images of which as many may be unreadable before so many were seen


@dataclass
class Unreadable:
    """Counts images that could not be read; writes them down, and refuses when they are too many."""

    folder: Folder
    most: float
    say: Say
    count: int = 0

    def note(self, batches: list[Batch], seen: int) -> None:
        """Takes the failures of a step; `seen` images were drawn so far."""
        failed = [one for batch in batches for one in batch.unreadable]
        if not failed:
            return
        self.count += len(failed)
        self.folder.note("unreadable.jsonl", ({"image": index, "error": error} for index, error in failed))
        self.say(f"warning: {self.count} of {seen} images could not be read; the last: image {failed[-1][0]}")
        if self.count > self.most * max(seen, ENOUGH):
            raise RunError(
                f"{self.count} of {seen} images could not be read, more than run.unreadable = {self.most:g} allows; "
                f"they are listed in {self.folder.path / 'unreadable.jsonl'}"
            )
