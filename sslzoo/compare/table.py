"""Which figures are compared, and what do they say? The verdict in words first, then the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from rich.table import Table

from sslzoo.compare.fairness import Box
from sslzoo.compare.statistics import Difference, Summary, difference, holm, p_wording, summary
from sslzoo.evaluate.written import plain
from sslzoo.report.doctor import GAIN
from sslzoo.report.records import Record


@dataclass(frozen=True)
class Comparison:
    """Every variant's figures, and its differences to the baseline."""

    baseline: str
    networks: tuple[str, ...]
    figures: tuple[str, ...]  # "network probe/task"
    summaries: Mapping[str, Mapping[str, Summary]]  # by variant, by figure
    differences: Mapping[str, Mapping[str, Difference]]  # without the baseline
    gains: Mapping[str, Mapping[str, float]]  # trained less untrained
    ready: Mapping[str, Sequence[Record]]  # the runs whose figures these are
    left_out: Sequence[str] = field(default=())  # what could not be compared, and why


def compare(variants: Mapping[str, Sequence[Record]], baseline: str) -> Comparison:
    """Summaries and paired differences of the top-1 figures that the baseline and some other variant have.

    Only finished runs with figures count, and only the seeds that both sides have are paired.
    """
    left_out = [
        f"{name}, seed {one.seed}: {_why_not(one)}"
        for name, records in variants.items()
        for one in records
        if not _is_ready(one)
    ]
    ready: dict[str, list[Record]] = {}
    for name, records in variants.items():
        for one in (one for one in records if _is_ready(one)):
            if one.seed in (other.seed for other in ready.get(name, ())):
                left_out.append(f"{name}, seed {one.seed}: {one.folder} is a second run of this recipe and seed")
            else:
                ready.setdefault(name, []).append(one)
    sets = {name: set().union(*map(_own, records)) for name, records in ready.items()}
    figures = _compared(sets, baseline)
    left_out += _lacking(ready)
    had = {name: [what for what in figures if what in own] for name, own in sets.items()}
    summaries = {
        name: {what: summary([_value(one, what) for one in _having(records, what)]) for what in had[name]}
        for name, records in ready.items()
    }
    gains = {name: {what: _gain(_having(own, what), what) for what in had[name]} for name, own in ready.items()}
    flat: list[tuple[str, str, Difference]] = []
    if baseline in ready:
        for name in ready:
            if name != baseline:
                both = [what for what in had[name] if what in had[baseline]]
                flat += [(name, what, _paired(ready[name], ready[baseline], what)) for what in both]
    corrected = holm([one for *_, one in flat])
    found: dict[str, dict[str, Difference]] = {}
    for (name, what, _), one in zip(flat, corrected, strict=True):
        found.setdefault(name, {})[what] = one
    networks = tuple(dict.fromkeys(what.split(" ")[0] for what in figures))
    return Comparison(baseline, networks, tuple(figures), summaries, found, gains, ready, tuple(left_out))


def _is_ready(one: Record) -> bool:
    imported = (
        "start" in one.tree and not one.step and not one.attempts
    )  # `sslzoo import`: what was probed is the file's
    return (one.state == "done" or imported) and bool(one.figures)


def _having(records: Sequence[Record], what: str) -> list[Record]:
    """The runs that have a figure."""
    return [one for one in records if what in _own(one)]


def _lacking(ready: Mapping[str, Sequence[Record]]) -> list[str]:
    """Figures that some runs have and not all, by those who lack them: variants, or some seeds of one."""
    there = sorted(set().union(*(_own(one) for records in ready.values() for one in records)))
    lost: dict[tuple[str, ...], list[str]] = {}
    for what in there:
        names: list[str] = []
        for name, records in ready.items():
            lack = [one for one in records if what not in _own(one)]
            names += [name] if len(lack) == len(records) else [f"{name}, seed {one.seed}" for one in lack]
        if names:
            lost.setdefault(tuple(names), []).append(what)
    return [
        f"{told}: {'; '.join(names)} {'have' if len(names) > 1 else 'has'} none, or one not finite"
        for names, figures in lost.items()
        for told in _by_network(figures, there)
    ]


def _by_network(figures: Sequence[str], there: Sequence[str]) -> Iterator[str]:
    """Figures, one by one; where they are all that there are of a network, in a word."""
    for network in dict.fromkeys(what.partition(" ")[0] for what in figures):
        own, known = ([what for what in some if what.startswith(f"{network} ")] for some in (figures, there))
        yield f"all {len(own)} figures of the {network}" if own == known and len(own) > 2 else ", ".join(own)


def _gain(records: Sequence[Record], what: str) -> float:
    network, _, key = what.partition(" ")
    return float(np.mean([one.gains(network).get(key, math.nan) for one in records]))


def _why_not(one: Record) -> str:
    return "no figures yet" if one.state == "done" else f"{one.state} at step {one.step} of {one.steps}"


def _compared(sets: Mapping[str, set[str]], baseline: str) -> list[str]:
    """Figures that the baseline and another have; where there are not both, those that all have."""
    others = [own for name, own in sets.items() if name != baseline]
    if baseline in sets and others:
        found = sets[baseline] & set().union(*others)
    else:
        found = set.intersection(*sets.values()) if sets else set()
    return sorted(found, key=lambda what: (not what.startswith("teacher "), what))  # the paper's network first


def _own(one: Record) -> set[str]:
    """The top-1 figures of a run, as "network probe/task"."""
    return {
        f"{network} {key.removesuffix('/top1')}"
        for network, figures in one.figures.items()
        for key, value in figures.items()
        if key.endswith("/top1") and math.isfinite(value)
    }


def _value(one: Record, what: str) -> float:
    network, _, key = what.partition(" ")
    return one.figures[network].get(f"{key}/top1", math.nan)


def _paired(ours: Sequence[Record], theirs: Sequence[Record], what: str) -> Difference:
    ours, theirs = _having(ours, what), _having(theirs, what)
    other = {one.seed: one for one in theirs}
    pairs = [(one, other[one.seed]) for one in ours if one.seed in other]
    if not pairs:
        gap = float(np.mean([_value(one, what) for one in ours]) - np.mean([_value(one, what) for one in theirs]))
        return Difference(gap, None, None, None, (), "no seed in common, so nothing is paired")
    values = [[_value(one, what) for one in side] for side in zip(*pairs, strict=True)]
    network, _, key = what.partition(" ")
    probe = key.partition("/")[0]
    if len({plain(one.evaluated[network].settings_with([probe])) for pair in pairs for one in pair}) > 1:
        gaps = tuple(a - b for a, b in zip(*values, strict=True))
        return Difference(float(np.mean(gaps)), None, None, None, gaps, "evaluated in different ways")
    correct = [[one.correct(what) for one in side] for side in zip(*pairs, strict=True)]
    known = all(x is not None for side in correct for x in side)
    alike = known and len({len(x) for side in correct for x in side if x is not None}) == 1
    answers = (np.stack(correct[0]), np.stack(correct[1])) if alike else None  # type: ignore[arg-type]
    return difference(values[0], values[1], answers)


def verdict(found: Comparison) -> list[str]:
    """What may be said, in sentences: one for each variant against the baseline, then what none has learned."""
    if not found.summaries:
        return ["No run is finished and evaluated, so there is nothing to compare yet."]
    if not found.figures:
        return ["The runs have no figure in common, so nothing is compared."]
    lines = [_against(name, one, found.baseline) for name, one in found.differences.items()]
    if found.baseline not in found.summaries:
        lines.append(f"The baseline {found.baseline} has no finished run with figures, so nothing is compared with it.")
    elif not lines:
        lines.append(f"Only {found.baseline} has finished runs with figures, so there is nothing to compare it with.")
    lines += _nearly(found)
    known = {name: [gain for gain in gains.values() if not math.isnan(gain)] for name, gains in found.gains.items()}
    unlearnt = [name for name, gains in known.items() if gains and max(gains) <= GAIN]
    if unlearnt:
        lines.append(f"Not above its untrained encoder on any figure: {', '.join(unlearnt)}.")
    return lines


def _nearly(found: Comparison) -> list[str]:
    """What more seeds, or fewer questions, would tell: gaps that are sure alone, and not among so many tests."""
    tested = [(name, one) for name, own in found.differences.items() for one in own.values() if one.p is not None]
    nearly = [name for name, one in tested if not one.sure and one.alone is not None and one.alone < 0.05]
    if not nearly:
        return []
    of = ", ".join(f"{name} {nearly.count(name)}" for name in dict.fromkeys(nearly))
    return [
        f"Corrected for {len(tested)} tests, p is 0.05 or more where a test alone would be below ({of}): more seeds, "
        "or an evaluation of fewer figures, would tell."
    ]


def _against(name: str, differences: Mapping[str, Difference], baseline: str) -> str:
    """Where a variant is surely higher or lower than the baseline; where it is not sure, the largest gap."""
    sides = []
    for word, sign in (("higher", 1), ("lower", -1)):
        sure = {what: one for what, one in differences.items() if one.sure and one.mean * sign > 0}
        if sure:
            sides.append(f"surely {word} on " + ", ".join(f"{what} ({_points(one)})" for what, one in sure.items()))
    rest = {what: one for what, one in differences.items() if not one.sure}
    if not rest:
        return f"{name} against {baseline}: {'; '.join(sides)}."
    widest = max(rest, key=lambda what: abs(rest[what].mean))
    many = f"any of {len(rest)} figures" if not sides else f"the other {len(rest)}"
    words = f"no sure difference on {many} (the largest: {widest}, {_points(rest[widest])})"
    why = {one.why for one in rest.values() if one.why}
    words += f", not tested: {', '.join(sorted(why))}" if all(one.why for one in rest.values()) else ""
    return f"{name} against {baseline}: {'; '.join([*sides, words])}."


def _points(one: Difference) -> str:
    return f"{one.mean:+z.1f} points" + ("" if one.p is None else f", {p_wording(one)}")


def shown(found: Comparison) -> Table:
    """The figures for a terminal."""
    drawn = Table("top-1, percent", *found.summaries, box=None, header_style="bold")
    for column in drawn.columns[1:]:
        column.justify = "right"
    for what in found.figures:
        row = []
        for name, figures in found.summaries.items():
            one, gap = figures.get(what), found.differences.get(name, {}).get(what)
            spread = "" if one is None or one.std is None else f" ±{one.std:.1f}"
            row.append("" if one is None else f"{one.mean:.1f}{spread}{'*' if gap and gap.sure else ''}")
        drawn.add_row(what, *row)
    if found.differences:
        drawn.caption = f"* differs from {found.baseline}: p < 0.05, paired over seeds, corrected (Holm)"
    return drawn


def as_json(found: Comparison, fair: Box) -> dict[str, object]:
    """The same for a script."""
    return {
        "baseline": found.baseline,
        "figures": {name: {what: asdict(one) for what, one in own.items()} for name, own in found.summaries.items()},
        "differences": {name: {w: asdict(one) for w, one in own.items()} for name, own in found.differences.items()},
        "fairness": asdict(fair),
        "left_out": list(found.left_out),
        "verdict": verdict(found),
    }
