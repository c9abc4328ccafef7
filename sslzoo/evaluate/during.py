"""Does a run learn, seen while it goes on? Its first probe, on some images, every now and then."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sslzoo.contracts import Dataset
from sslzoo.errors import RunError
from sslzoo.evaluate.bench import bench, untrained
from sslzoo.plugins import Catalogue
from sslzoo.recipe.recipe import Recipe
from sslzoo.run.data import all_over
from sslzoo.run.networks import evaluated_encoder
from sslzoo.run.parallel import all_sum
from sslzoo.run.stop import Stop
from sslzoo.step import Method

VOTE_EVERY = 16  # images between votes of ranks that probe together


class During:
    """Figures of a method's encoder by the first probe of `evaluate`, on some of its images, beside it untrained.

    No run waits for them in vain: a probe is left out, and `say` told, once there is a wish to `stop`, or when it takes
    more than `most` seconds. Ranks that ask a shared encoder `together` vote on that, for one must not leave alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        installed: Catalogue,
        device: torch.device,
        folder: Path | None = None,
        *,
        stop: Stop | None = None,
        most: float = math.inf,
        together: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        assert recipe.evaluate is not None
        self.stop, self.most, self.say = stop or Stop(), most, say
        self.until = math.inf
        self.together, self.seen = together, 0  # images that were read
        first = next(iter(recipe.evaluate.probes))
        opened = bench(recipe, installed, [first], device=device, folder=folder)
        train, test = (Some(data, recipe.evaluate.images, self._go_on) for data in (opened.train, opened.test))
        self.bench = dataclasses.replace(opened, workers=0, train=train, test=test)
        self.device, self.network = device, recipe.evaluate.network
        self.start = self._read(untrained(recipe, installed).to(device))

    def __call__(self, method: Method) -> dict[str, float]:
        """{"probe/knn/count": percent, "probe/knn/count/untrained": percent, ...} of each task."""
        found = {f"probe/{name}": value for name, value in self._read(method).items()}
        return found | {f"probe/{name}/untrained": value for name, value in self.start.items()}

    def _read(self, method: Method) -> dict[str, float]:
        self.until, self.seen = time.monotonic() + self.most, 0
        try:
            figures = self.bench.probe(evaluated_encoder(method, self.network), self.device)[0]
        except (_LeftOut, RunError) as error:  # such as features that are not finite: no reason to end a run
            self.say(f"warning: a probe during the run was left out: {error}")
            return {}
        return {name.removesuffix("/top1"): value for name, value in figures.items() if name.endswith("/top1")}

    def _go_on(self) -> None:
        """Asked before each image, of which all ranks read the same; raises _LeftOut."""
        wish, late = self.stop.asked, time.monotonic() > self.until
        if self.together:
            self.seen += 1
            if self.seen % VOTE_EVERY:
                return
            votes = all_sum(torch.tensor(float(bool(wish)), device=self.device))
            wish = (wish or "a signal to another process") if votes else ""
        if wish:
            raise _LeftOut(f"there was {wish}")
        if late:
            raise _LeftOut(
                f"after {self.most:.0f} seconds it was not done, and other processes wait for this one only "
                "SSLZOO_PATIENCE seconds; ask for fewer evaluate.images"
            )


class _LeftOut(Exception):  # noqa: N818 - what happened
    """A probe was broken off."""


class Some:
    """Some images of a data set, from all over it: the first ones of a folder are of one class."""

    def __init__(self, data: Dataset, most: int, go_on: Callable[[], None]) -> None:
        self.go_on = go_on  # asked before each image; may raise
        self.data, self.index = data, list(all_over(len(data), most))
        self.tasks: Mapping[str, int] = data.tasks

    def __len__(self) -> int:
        return len(self.index)

    def image(self, i: int) -> Any:
        """Image i of these."""
        self.go_on()
        return self.data.image(self.index[i])

    def label(self, i: int) -> Mapping[str, int]:
        """The classes of image i of these."""
        return self.data.label(self.index[i])
