"""What does a run folder say of its run, for a comparison? Its recipe, cost, machine, health and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sslzoo import files
from sslzoo.errors import RunError, UserError
from sslzoo.evaluate import written
from sslzoo.evaluate.bench import asked as asked_for
from sslzoo.evaluate.written import Evaluation
from sslzoo.progress import Progress
from sslzoo.recipe.recipe import load
from sslzoo.recipe.resuming import leaves
from sslzoo.recipe.schedule import Schedule
from sslzoo.run.folder import Folder
from sslzoo.run.networks import kind
from sslzoo.run.state import State

# Keys of a recipe that say how a run is told and fed, not what is learnt.
HOW = (
    "run.workers",
    "run.log_every",
    "run.save_every",
    "run.keep",
    "run.milestones",
    "run.monitor",
    "run.monitor_every",
)


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
    attempts: tuple[Mapping[str, Any], ...] = ()  # the facts of each
    identities: tuple[Mapping[str, Any], ...] = ()  # what its training data were, in their order
    plugins: Mapping[str, str] = field(default_factory=dict)  # that it uses, and their versions
    lines: tuple[Mapping[str, float], ...] = ()  # metrics
    evaluated: Mapping[str, Evaluation] = field(default_factory=dict)  # by kind of network: teacher, student
    evaluations: tuple[Evaluation, ...] = ()  # all that there are, of which those are some
    faults: tuple[str, ...] = ()  # a sentence for each file that is damaged, and was left out

    @cached_property
    def leaves(self) -> dict[str, Any]:
        """Every value of the resolved recipe by its place."""
        return {".".join(place): value for place, value in leaves(self.tree)}

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
        """Patches that the student's encoder saw, of all views: of an image, the mean over all that was logged."""
        seen = [line["context_patches"] for line in self.lines if line.get("context_patches") is not None]
        return sum(seen) / len(seen) * self.images if seen else None

    @property
    def seconds(self) -> float | None:
        """Seconds that devices worked in the training loop, of all processes that each attempt had.

        Of GPUs the time that passed, of CPUs what cores did for the run; of a run that did not tell, the time.
        """
        spent, before = 0.0, 0.0
        for line in self.lines:
            now = line.get("device_seconds", line.get("seconds"))
            if now is None:
                continue
            had = [facts for facts in self.attempts if facts.get("from", 0) < line["step"]] or [self.facts]
            spent += (now - before) * had[-1].get("processes", 1)
            before = now
        return spent if before else None

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
        images = (self.facts.get("data") or {}).get("images") or self.steps * self.batch
        return max(1, int(images) // self.batch)

    @property
    def warm_up(self) -> float:
        """Share of the run that the learning rate's warm-up takes."""
        warm = Schedule.parse(self.tree["optim"]["lr"]).warm
        return warm.steps(self.epoch_steps) / max(1, self.steps)

    @property
    def skipped(self) -> int:
        """Steps that were not finite and changed nothing."""
        return len(list((self.folder / "nonfinite").glob("*-rank-0.txt")))

    @cached_property
    def figures(self) -> dict[str, Mapping[str, float]]:
        """Figures of the trained encoder, by kind of network: "probe/task/figure"."""
        return {kind: one.columns[one.trained] for kind, one in self.evaluated.items()}

    @cached_property
    def untrained(self) -> dict[str, Mapping[str, float]]:
        """The same of the encoder as it started."""
        return {kind: one.columns.get("untrained", {}) for kind, one in self.evaluated.items()}

    def gains(self, kind: str) -> dict[str, float]:
        """By "probe/task", points of percent that a kind of network is above the same encoder untrained."""
        figures, before = self.figures.get(kind, {}), self.untrained.get(kind, {})
        both = [key for key in figures if key.endswith("/top1") and key in before]
        return {key.removesuffix("/top1"): figures[key] - before[key] for key in both}

    @cached_property
    def chance(self) -> Mapping[str, float]:
        """What telling the commonest class scores, by task."""
        return next((one.columns.get("chance", {}) for one in self.evaluated.values()), {})

    def correct(self, what: str) -> NDArray[np.generic] | None:
        """Whether each test image was told right, for "NETWORK probe/task"; None where it was not kept."""
        kind, _, key = what.partition(" ")
        return self.evaluated[kind].correct(key)

    @property
    def networks(self) -> tuple[str, ...]:
        """Networks that were evaluated."""
        return tuple(self.evaluated)

    @property
    def evaluation(self) -> str:
        """Data, view, probes and pooling of the evaluation."""
        settings = {yaml.safe_dump(one.settings, sort_keys=False) for one in self.evaluated.values()}
        return "\n".join(sorted(settings)) or "none"

    @property
    def data(self) -> str:
        """The training set, with its fingerprint."""
        return yaml.safe_dump({**self.tree["data"], "identity": self.facts.get("data") or "not recorded"})

    @property
    def versions(self) -> str:
        """Versions of all that matters."""
        return self._of_attempts(
            lambda facts: ", ".join(f"{name} {value}" for name, value in sorted((facts.get("versions") or {}).items()))
        )

    @property
    def commit(self) -> str:
        """The git commit of a source checkout, or nothing."""
        return self._of_attempts(lambda facts: str(facts.get("commit") or "")[:12])

    @property
    def machine(self) -> str:
        """Device model and number of processes."""
        return self._of_attempts(lambda facts: f"{facts.get('processes', '?')} x {facts.get('device', '?')}")

    @property
    def threads(self) -> str:
        """Threads of each process."""
        return self._of_attempts(lambda facts: str(facts.get("threads", "?")))

    def _of_attempts(self, tell: Callable[[Mapping[str, Any]], str]) -> str:
        """What all attempts tell; where one went on otherwise than it began, each in its turn."""
        return ", then ".join(dict.fromkeys(tell(facts) for facts in self.attempts or (self.facts,)))


def read(folder: Path, variant: str = "", asked: Mapping[str, Any] | None = None) -> Record:
    """The record of a run folder.

    Of its evaluations, the newest of its last step count; where something is `asked` (`bench.asked`), of those that
    answer it.

    Raises:
        RunError: it holds no recipe that can be read.
    """
    there, state = Folder(folder), State(folder)
    tree, fault = there.tree()
    if tree is None:
        raise RunError(fault or f"{folder} is not a run folder: it holds no recipe.yaml")
    (lines, torn), (data, changed) = there.metrics.found(), there.data()
    now, last = state.now, int(lines[-1]["step"]) if lines else 0
    starts = tuple(
        one["facts"] | {"from": one["from"], "before": one.get("before")}
        for one in state.attempts
        if _are_facts(one.get("facts"))
    )
    facts = (starts[-1] if starts else {}) | {"peak_memory": now.get("peak_memory")}
    facts |= {"data": data[-1]} if data else {}
    try:
        evaluated, bad = written.read(folder, tree["name"], tree["run"]["seed"])
        step = now.get("step") or last
        fitting = [one for one in evaluated if one.step == step and (asked is None or one.answers(asked))]
        made = Record(
            folder=folder,
            variant=variant or str(tree["name"]),
            seed=int(tree["run"]["seed"]),
            tree=tree,
            state=now.get("state", "not started"),
            step=step,
            steps=int(now.get("steps") or tree["run"].get("steps") or last),
            facts=facts,
            attempts=starts,
            identities=tuple(data),
            plugins=_plugins(there.plugins, starts),
            lines=tuple(lines),
            evaluated=_by_kind(fitting, tree),
            evaluations=tuple(evaluated),
            faults=tuple(one for one in (*state.faults, torn, changed, *bad) if one),
        )
        _ = made.batch, made.kept, made.warm_up  # all that is asked of the recipe
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{folder / 'recipe.yaml'} is damaged: {type(error).__name__}: {error}") from error
    return made


def own(folder: Path, step: int | None = None) -> Record:
    """The record of one run by itself: of each kind of network, the evaluation that answers the run's own recipe.

    Where none does, the newest (`written.chosen`); at a step, the last if left out.

    Raises:
        RunError: it holds no recipe that can be read.
    """
    record = read(folder)
    try:
        recipe, installed = load(str(folder))
        wanted = recipe.evaluate and asked_for(recipe, installed)
    except UserError:  # a plugin that is not here says nothing of the run's health
        wanted = None
    found = written.chosen(record.evaluations, record.step if step is None else step, wanted or None)
    return replace(record, evaluated=_by_kind(found.values(), record.tree))


def _by_kind(evaluations: Iterable[Evaluation], tree: Mapping[str, Any]) -> dict[str, Evaluation]:
    """The teacher's, then the student's: of several teachers the first's, as in pictures; of each the last given."""
    names = [*(tree.get("targets") or {}), "student"]
    order = {name: number for number, name in enumerate(names)}
    last_first = sorted(evaluations, key=lambda one: order.get(one.network, len(names)), reverse=True)
    return dict(reversed({kind(one.network): one for one in last_first}.items()))


def by_recipe(folders: list[Path]) -> dict[str, list[Record]]:
    """Records of any runs, grouped by recipe; a group is named by where its recipe differs.

    Seed and name aside, and how a run is told and probed; unless one seed would stand twice in a group for that.
    """
    found = _by_what_all_have([read(folder) for folder in folders])
    ordered = []
    for group in _alike(found, ("run.seed", "name", "evaluate", *HOW)):
        twice = len({one.seed for one in group}) < len(group)
        for records in _alike(group, ("run.seed", "name")) if twice else [group]:
            ordered.append(sorted(records, key=lambda one: one.seed))
    names = [records[0].variant.removesuffix(f"-seed-{records[0].seed}") for records in ordered]
    if len(set(names)) < len(names) and len(folders) == len(ordered):
        names = [records[0].folder.resolve().name for records in ordered]  # one run each: the name a person gave it
    if len(set(names)) < len(names):
        names = _by_difference([records[0].leaves for records in ordered])
    return dict(zip(names, ordered, strict=True))


def _alike(records: Iterable[Record], aside: tuple[str, ...]) -> list[list[Record]]:
    """Runs of one recipe together, in their order; some places aside."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        own = {place: value for place, value in one.leaves.items() if not _within(place, aside)}
        groups.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(one)
    return list(groups.values())


def _within(place: str, places: Iterable[str]) -> bool:
    """Whether a place is one of these, or below one."""
    return any(place == one or place.startswith(f"{one}.") for one in places)


def _by_what_all_have(records: Sequence[Record]) -> list[Record]:
    """Runs with figures of the same settings, of each kind of network: the newest that all who have it were read by.

    Where there are none such, each with its newest.
    """
    chosen: list[dict[str, Evaluation]] = [dict(one.evaluated) for one in records]
    for network in dict.fromkeys(network for one in records for network in one.evaluated):
        having = [number for number, one in enumerate(records) if network in one.evaluated]
        there = [_by_settings(records[number], network) for number in having]
        common = [settings for settings in there[0] if all(settings in one for one in there)]
        for number, one in zip(having, there, strict=True):
            if common:
                chosen[number][network] = one[common[-1]]
    return [replace(one, evaluated=own) for one, own in zip(records, chosen, strict=True)]


def _by_settings(record: Record, network: str) -> dict[str, Evaluation]:
    """Evaluations of its last step of a network of this kind, by their settings, newest last."""
    name = record.evaluated[network].network
    return {
        written.plain(one.settings): one
        for one in sorted(record.evaluations, key=lambda one: ("untrained" in one.columns, one.time))
        if (one.network, one.step) == (name, record.step)
    }


def _by_difference(leaves: list[dict[str, Any]]) -> list[str]:
    """A name for each recipe, of the values in which they differ; numbered where even those do not tell them apart."""
    places = [
        place
        for place in sorted({place for one in leaves for place in one})
        if not place.startswith(("run.seed", "name")) and len({str(one.get(place)) for one in leaves}) > 1
    ]
    names: list[str] = []
    for one in leaves:
        own = ", ".join(f"{place.rpartition('.')[2]}={one[place]}" for place in places if place in one)[:60]
        names.append(own if own and own not in names else f"{own or 'variant'} ({len(names) + 1})")
    return names


def _plugins(now: Mapping[str, str], starts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Versions of plugins; of one that was upgraded on the way, each in its turn."""
    had = [facts.get("plugins") or {} for facts in starts]
    return {
        name: ", then ".join(dict.fromkeys([*(one[name] for one in had if name in one), number]))
        for name, number in now.items()
    }


_FACTS = files.typed(data=dict, versions=dict, processes=int, width=int, peak_memory=(int, float))
_FACTS_TOO = files.typed(flops_per_image=(int, float), commit=str, plugins=dict, settings=dict)


def _are_facts(row: Any) -> bool:
    return bool(row) and _FACTS(row) and _FACTS_TOO(row)
