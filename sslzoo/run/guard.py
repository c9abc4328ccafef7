"""Does a run stay healthy, and did anybody ask it to stop? Votes of all ranks, and images that cannot be read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sslzoo.contracts import Batch
from sslzoo.errors import RunError
from sslzoo.progress import Progress
from sslzoo.run.folder import Folder
from sslzoo.run.parallel import World, all_sum
from sslzoo.run.stop import Stop


@dataclass
class Guard:
    """Sees that numbers stay finite and whether anybody asked to stop, without waiting for the device.

    A step that is not finite changes no weights; its images are written to nonfinite/; three in a row end the run.
    All ranks vote in one sum a step. On a GPU its result is read a fixed number of steps later, when it has long
    arrived: so no step waits, and all ranks learn of it at the same step.
    """

    folder: Folder
    world: World
    stop: Stop
    limit: int = 3
    row: int = 0
    stopping: str = ""
    pending: deque[tuple[Progress, Tensor, Any, tuple[int, ...]]] = field(default_factory=deque)

    def check(self, at: Progress, loss: Tensor, norm: Tensor, batches: list[Batch]) -> Tensor:
        """Whether loss and gradients of all ranks are finite, 0-d bool on the device."""
        bad = (~(loss.isfinite() & norm.isfinite())).float()
        votes = all_sum(torch.stack([bad, torch.full_like(bad, bool(self.stop.asked))]))
        samples = tuple(index for batch in batches for index in batch.samples)
        copied, done = votes.to("cpu", non_blocking=True), None
        if votes.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self.pending.append((at, copied, done, samples))
        self.settle(later=0 if done is None else 8)
        return votes[0] == 0

    def settle(self, later: int = 0) -> None:
        """Deals with the votes of all steps but the last few."""
        while len(self.pending) > later:
            at, votes, done, samples = self.pending.popleft()
            if done is not None:
                done.synchronize()
            bad, asked = votes.tolist()
            self.row = self.row + 1 if bad else 0
            if bad:
                self._report(at, samples)
            if asked:
                self.stopping = f"stopped by {self.stop.asked or 'a signal to another process'}"

    def _report(self, at: Progress, samples: tuple[int, ...]) -> None:
        place = self.folder.path / "nonfinite"
        place.mkdir(exist_ok=True)
        name = f"step-{at.step + 1:09d}-rank-{self.world.rank}.txt"
        (place / name).write_text("\n".join(map(str, samples)) + "\n")
        if self.row >= self.limit:
            raise RunError(
                f"{self.row} steps in a row, the last of them step {at.step + 1}, had a loss or gradient that is not "
                f"finite; the images of their batches are listed in {place}; lower the learning rate, clip gradients "
                "(optim.clip), or try run.precision: fp32"
            )


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
        if seen >= 100 and self.count > self.most * seen:
            raise RunError(
                f"{self.count} of {seen} images could not be read, more than run.unreadable = {self.most:g} allows; "
                f"they are listed in {self.folder.path / 'unreadable.jsonl'}"
            )
