"""What does a run folder say of its run, for a comparison? Its recipe, cost, machine, health and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sslzoo.errors import RunError
from sslzoo.launch.state import State
from sslzoo.progress import Progress
from sslzoo.recipe.schedule import Schedule
from sslzoo.run.folder import Folder


@dataclass(frozen=True)
class Record:
    """One run, as its folder tells it."""

    folder: Path
    variant: str
    seed: int
    tree: Mapping[str, Any]  # the resolved recipe
    state: str
    step: int
    steps: int
    facts: Mapping[str, Any] = field(default_factory=dict)  # of its last attempt: machine, versions, arithmetic
    lines: tuple[Mapping[str, float], ...] = ()  # metrics
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by network, "probe/task/figure"
    untrained: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # the same before training
    chance: Mapping[str, float] = field(default_factory=dict)  # by task
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by network, what the figures were made with
    health: str = ""

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """Every value of the resolved recipe by its place."""
        return dict(_leaves(self.tree))

    @property
    def batch(self) -> int:
        """Images of a step, over all processes."""
        return int(self.tree["run"]["batch"])

    @property
    def images(self) -> float:
        """Images seen."""
        return self.step * self.batch

    @property
    def flops(self) -> float | None:
        """Arithmetic of the whole training: forward and backward, mean over mask draws."""
        each = self.facts.get("flops_per_image")
        return None if each is None else each * self.images

    @property
    def tokens(self) -> float | None:
        """Patches that the student's encoder saw."""
        shares = [
            value for key, value in (self.lines[-1] if self.lines else {}).items() if key.startswith("context_share/")
        ]
        each = self.facts.get("patches_per_image")
        return None if each is None else each * self.images * (sum(shares) / len(shares) if shares else 1.0)

    @property
    def seconds(self) -> float | None:
        """Device seconds: time in the training loop, of all processes together."""
        each = self.lines[-1].get("seconds") if self.lines else None
        return None if each is None else each * self.facts.get("processes", 1)

    @property
    def kept(self) -> float | None:
        """Share of its starting weights that the slowest teacher still has; None without a teacher."""
        shares = []
        for spec in (self.tree.get("targets") or {}).values():
            if "momentum" in spec:
                momentum = Schedule.parse(spec["momentum"])
                values = (momentum(Progress(n, self.steps, self.epoch_steps)) for n in range(self.step))
                shares.append(math.exp(sum(math.log(max(m, 1e-300)) for m in values)))
        return max(shares, default=None)

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return max(1, int(self.facts.get("images", self.steps * self.batch)) // self.batch)

    @property
    def warm_up(self) -> float:
        """Share of the run that the learning rate's warm-up takes."""
        warm = Schedule.parse(self.tree["optim"]["lr"]).warm
        return warm.steps(self.epoch_steps) / max(1, self.steps)

    @property
    def skipped(self) -> int:
        """Steps that were not finite and changed nothing."""
        return len(list((self.folder / "nonfinite").glob("*-rank-0.txt")))

    @property
    def networks(self) -> tuple[str, ...]:
        """Networks that were evaluated."""
        return tuple(self.figures)

    @property
    def evaluation(self) -> str:
        """Data, view, probes and pooling of the evaluation, as one line."""
        settings = {json.dumps(one.get("settings"), sort_keys=True, default=str) for one in self.told.values()}
        return "; ".join(sorted(settings)) or "none"

    @property
    def data(self) -> str:
        """The training set, with its fingerprint."""
        return f"{json.dumps(self.tree['data'], sort_keys=True, default=str)} {self.facts.get('data', '')}".strip()

    @property
    def versions(self) -> str:
        """Versions of all that matters."""
        return ", ".join(f"{name} {value}" for name, value in sorted((self.facts.get("versions") or {}).items()))

    @property
    def machine(self) -> str:
        """Device model and number of processes."""
        return f"{self.facts.get('processes', '?')} x {self.facts.get('device', '?')}"

    @property
    def threads(self) -> Any:
        """Threads of each process."""
        return self.facts.get("threads", "?")


def read(folder: Path, variant: str = "") -> Record:
    """The record of a run folder.

    Raises:
        RunError: it holds no recipe that can be read.
    """
    try:
        tree = yaml.safe_load(Folder(folder).recipe.read_text())
        run = tree["run"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise RunError(f"{folder} is no run folder that can be read: {error}") from error
    state, lines = State(folder), tuple(Folder(folder).metrics.read())
    now, attempts = state.now, state.attempts
    steps = int(now.get("steps") or run.get("steps") or (lines[-1]["step"] if lines else 0))
    step = int(now.get("step") or (lines[-1]["step"] if lines else 0))
    figures, told = _figures(folder, step)
    facts = next((one["facts"] for one in reversed(attempts) if "facts" in one), {})
    own = now.get("state", "not started")
    return Record(
        folder, variant or str(tree.get("name")), int(run["seed"]), tree, own, step, steps, facts, lines, figures, told
    )


def by_recipe(folders: list[Path]) -> dict[str, list[Record]]:
    """Records of any runs, those of one recipe but for its seed together, named by where they differ."""
    groups: dict[str, list[Record]] = {}
    for folder in folders:
        one = read(folder)
        own = {place: value for place, value in one.leaves.items() if place not in ("run.seed", "name")}
        groups.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(one)
    named: dict[str, list[Record]] = {}
    for records in groups.values():
        name = records[0].variant.removesuffix(f"-seed-{records[0].seed}")
        while name in named:
            name += "'"
        named[name] = sorted(records, key=lambda one: one.seed)
    return named


def _figures(folder: Path, step: int) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Any]]]:
    """Figures of the run's last step by network, and `untrained/NETWORK` and `chance`; what each was made with."""
    figures: dict[str, dict[str, float]] = {}
    told: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "eval").glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if found.get("step") != step or "network" not in found:
            continue
        network = found["network"]
        figures[network] = found["figures"].get("trained") or next(iter(found["figures"].values()))
        told[network] = found
    return figures, told


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree
