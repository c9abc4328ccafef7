"""What does a reader see of a comparison? One HTML file that opens offline: the verdict first, then all it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sslzoo.compare import charts
from sslzoo.compare.fairness import Box, Finding
from sslzoo.compare.statistics import Difference, Summary, mean, summary, wording
from sslzoo.compare.table import Comparison, verdict
from sslzoo.contracts import Grid
from sslzoo.errors import UserError
from sslzoo.plugins import catalogue
from sslzoo.report import html, insides, words
from sslzoo.report import page as page_of_run
from sslzoo.report.charts import Chart
from sslzoo.report.html import Cell, Table
from sslzoo.report.insides import Look
from sslzoo.report.records import Record
from sslzoo.run.networks import kind

NOTHING = Cell("", -1e308)  # of what is not known; sorted below all
SIDES = (
    ("question", "The question"),
    ("beside", "Beside the question"),
    ("unfair", "Unfair"),
    ("same", "The same"),
)
# What the sections of a recipe are about, in words; and costs, by their names in the fairness box.
FAMILIES = {
    "data": "the training data",
    "views": "how images are cropped and changed",
    "masks": "what is hidden",
    "encoder": "the network",
    "predictor": "what guesses",
    "targets": "what is guessed",
    "losses": "how a guess is judged",
    "optim": "how it is optimized",
    "run": "length, batch and machine",
    "flops": "arithmetic of the training",
}


def write(
    folder: Path,
    title: str,
    variants: Mapping[str, Sequence[Record]],
    found: Comparison,
    fair: Box,
    commands: str,
    patch: Grid | None = None,
) -> Path:
    """Writes the page, and beside it every chart as SVG with its numbers as CSV; returns the page."""
    records = [one for each in variants.values() for one in each]
    seeds, many = ", ".join(map(str, sorted({one.seed for one in records}))), len(variants)
    looks, blind = opened_looks({name: each for name, each in variants.items() if each})
    return html.write(
        folder,
        html.Page(
            title=title,
            subtitle=f"{many} variant{'s' if many != 1 else ''}, seeds {seeds}; baseline {found.baseline}",
            verdict=[*verdict(found), *caveat(fair)],
            left_out=[*found.left_out, *blind],
            sides=[(name, heading, _in_words(getattr(fair, name))) for name, heading in SIDES]
            if many > 1 or fair.unfair
            else [],
            tables=list(_tables(variants, found)),
            charts=[*_charts(variants, found), *insides.charts(looks, patch)],
            sources=_sources(records, commands),
        ),
    )


def caveat(fair: Box) -> list[str]:
    """What a reader of the verdict alone must know: that not all was equal, and what was not."""
    if not fair.unfair:
        return []
    what = ", ".join(dict.fromkeys(one.what.partition(":")[0] for one in _in_words(fair.unfair)))
    return [f"Not all was equal or sound, and a difference may come of that: {what} (below, under Unfair)."]


def _in_words(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with a few words beside each place of a recipe."""
    told = {one.what: FAMILIES.get(one.what.partition(".")[0]) for one in findings}
    return [replace(one, what=f"{told[one.what]} ({one.what})") if told[one.what] else one for one in findings]


def opened_looks(variants: Mapping[str, Sequence[Record]]) -> tuple[list[Look], list[str]]:
    """A network of one run of each variant, its first seed that can be opened; and what none could be of, and why.

    All of one kind: students, where one has no teacher.
    """
    found = {name: _opened(name, records) for name, records in variants.items()}
    if len({kind(one.network) for one in found.values() if not isinstance(one, str)}) > 1:
        found = {name: _opened(name, records, "student") for name, records in variants.items()}
    looks = [one for one in found.values() if not isinstance(one, str)]
    blind = [f"pictures of {name}: {why}" for name, why in found.items() if isinstance(why, str)]
    others = [f"pictures of {title}: its test images are not those of the first" for title in insides.unlike(looks)]
    return looks, blind + others


def _opened(name: str, records: Sequence[Record], network: str | None = None) -> Look | str:
    """The network of the first run that can be opened; else why the first one cannot."""
    why = ""
    for record in records:
        try:
            return page_of_run.opened(record.folder, name, network)
        except UserError as error:
            why = why or str(error)
    return why


def _tables(variants: Mapping[str, Sequence[Record]], found: Comparison) -> Iterator[Table]:
    for network in found.networks:
        yield _figures(network, variants, found)
        yield from _gains(network, found.ready, found)
        if found.differences:
            yield _differences(network, found)
    rows = [_cost_row(name, records) for name, records in variants.items()]
    head = [
        "variant",
        "images",
        "steps",
        "training FLOPs",
        "device s",
        "patches seen",
        "parameters",
        "peak memory, bytes",
    ]
    note = (
        "Means over finished runs; of a variant that has none, over what ran. FLOPs: forward and backward, mean over "
        "mask draws. Device s: in the training loop, of all processes; of GPUs the time that passed, of CPUs what they "
        "did for the run (what others do on them aside, and processes that load data). Parameters: of all parts, a "
        "teacher and what is thrown away after training among them."
    )
    yield Table("Cost", note, head, rows)


def _figures(network: str, variants: Mapping[str, Sequence[Record]], found: Comparison) -> Table:
    own = _of_network(network, found)
    levels = {what: _ranges(found, what) for what in own}
    beside = [line for line in ("untrained", "chance") if any(line in one for one in levels.values())]
    rows = [
        [
            Cell(key, key),
            *(_spread(one.get(what), len(found.ready[name])) for name, one in found.summaries.items()),
            *(_level(levels[what].get(line)) for line in beside),
        ]
        for what, key in own.items()
    ]
    note = (
        "Top-1 in percent on test images: mean ± standard deviation over seeds. Untrained: the mean of the same "
        "encoders before training, from the lowest variant's to the highest's where encoders or seeds differ; none "
        "where some have a figure trained alone. Chance: the commonest class. "
        f"Where some seeds have no such figure, how many have. {_settings(network, variants)}"
    )
    return Table(f"Figures of the {network}", note, ["probe/task", *found.summaries, *beside], rows)


def _settings(network: str, variants: Mapping[str, Sequence[Record]]) -> str:
    """How figures were read: by the first run that has some; that all have the same is the fairness box's to say."""
    some = [one.evaluated[network] for each in variants.values() for one in each if network in one.evaluated]
    return f"{words.read_how(some[0], catalogue())} {words.how(some[0])}" if some else ""


def _gains(network: str, variants: Mapping[str, Sequence[Record]], found: Comparison) -> Iterator[Table]:
    """Trained less untrained, each run with its own start; over the seeds that were probed untrained too."""
    own = {name: [one.gains(network) for one in variants[name] if one.gains(network)] for name in found.summaries}
    if not any(own.values()):
        return
    rows = []
    for key in _of_network(network, found).values():
        values = {name: [gains[key] for gains in each if key in gains] for name, each in own.items()}
        rows.append([Cell(key, key), *(_gain(each, len(variants[name])) for name, each in values.items())])
    note = (
        "Points of percent above the same encoder before training, run by run: mean ± standard deviation over seeds. "
        "Where some seeds were not probed untrained, how many were."
    )
    yield Table(f"Gains of the {network} over the untrained encoder", note, ["probe/task", *own], rows)


def _gain(values: Sequence[float], runs: int) -> Cell:
    if not values:
        return NOTHING
    one = summary(values)
    spread = "" if one.std is None else f" ± {one.std:.1f}"
    return Cell(f"{one.mean:+z.1f}{spread}{_of(len(values), runs)}", one.mean)


def _differences(network: str, found: Comparison) -> Table:
    own = _of_network(network, found)
    rows = [
        [Cell(key, key), *(_in_lines(one.get(what)) for one in found.differences.values())] for what, key in own.items()
    ]
    note = (
        f"Points of percent above {found.baseline}, paired by seed; 95 % interval: Student's t on the "
        "error of a bootstrap over seeds and test images; p of a paired t-test over seeds, corrected by "
        "Holm's method for all cells of all tables of differences (alone: as if it were the only one)."
    )
    whys = sorted({one[what].why for one in found.differences.values() for what in own if what in one} - {""})
    note += f" Where no p stands, there was no test: {'; '.join(whys)}." if whys else ""
    return Table(f"Differences of the {network}", note, ["probe/task", *found.differences], rows)


def _in_lines(one: Difference | None) -> Cell:
    """A difference in a narrow cell: mean and interval above, p below; empty where there is none."""
    return NOTHING if one is None else Cell(wording(one).replace(", p ", "\np ", 1), one.mean)


def _of_network(network: str, found: Comparison) -> dict[str, str]:
    """The figures of a network, "network probe/task", each with its "probe/task"."""
    return {what: what.removeprefix(f"{network} ") for what in found.figures if what.startswith(f"{network} ")}


def _spread(one: Summary | None, runs: int) -> Cell:
    """Mean and spread; of how many runs, where not all have the figure."""
    if one is None:
        return NOTHING
    spread = "" if one.std is None else f" ± {one.std:.1f}"
    return Cell(f"{one.mean:.1f}{spread}{_of(len(one.values), runs)}", one.mean)


def _of(many: int, runs: int) -> str:
    return "" if many == runs else f" ({many} of {runs})"


def _cost_row(name: str, records: Sequence[Record]) -> list[Cell]:
    records = [one for one in records if one.state == "done"] or records  # as the fairness box
    means = [
        mean(one.images for one in records),
        mean(one.step for one in records),
        mean(one.flops for one in records),
        mean(one.seconds for one in records),
        mean(one.tokens for one in records),
        mean(one.facts.get("parameters_total") for one in records),
        mean(one.facts.get("peak_memory") for one in records),
    ]
    return [Cell(name, name), *(Cell("?", -1) if x is None else Cell(words.number_told(x), x) for x in means)]


def _charts(variants: Mapping[str, Sequence[Record]], found: Comparison) -> Iterator[Chart]:
    if found.figures:
        some = _main_figures(found)
        levels = {what: _levels(found.ready, *what.split(" ", 1)) for what in some}
        finished = {name: found.ready.get(name, ()) for name in variants}
        yield charts.against_cost(finished, levels, "Figures against cost")
    if found.differences:
        yield charts.differences(found.differences, found.baseline, list(variants))
    lines = {key for records in variants.values() for one in records for line in one.lines for key in line}
    keys = {key: label for key, label in {"rankme": "RankMe", "grad_norm": "gradient norm"}.items() if key in lines}
    if _one_kind_of_target(variants):
        keys = {"loss": "loss"} | keys
    if keys and any(one.lines for records in variants.values() for one in records):
        caption = (
            "Mean over seeds with the range of all seeds. RankMe: effective rank of the summaries of a fixed batch of "
            "training images (Garrido et al. 2023); a fall is collapse."
        )
        if "loss" not in keys:
            caption += " Losses are not drawn: their targets are of different kinds, so they cannot be compared."
        yield charts.curves(variants, keys, "curves", caption)


def _main_figures(found: Comparison) -> list[str]:
    """All tasks by one probe, a linear one where there is, of the first of those networks that most variants have."""
    kinds = [{what.partition(" ")[0] for what in own} for own in found.summaries.values()]
    having = {network: sum(network in own for own in kinds) for network in found.networks}
    network = max(found.networks, key=lambda one: having[one])
    first = [what for what in found.figures if what.startswith(f"{network} ")]
    chosen = next((what for what in first if " linear" in what), first[0]).rpartition("/")[0]
    return [what for what in first if what.rpartition("/")[0] == chosen]


def _levels(variants: Mapping[str, Sequence[Record]], network: str, key: str) -> dict[str, float]:
    task = key.rpartition("/")[2]
    records = [one for each in variants.values() for one in each]
    untrained = [
        one.untrained[network][f"{key}/top1"] for one in records if f"{key}/top1" in one.untrained.get(network, {})
    ]
    chance = [one.chance[task] for one in records if task in one.chance]
    levels = {"untrained": sum(untrained) / len(untrained)} if untrained else {}
    return levels | ({"chance": sum(chance) / len(chance)} if chance else {})


def _ranges(found: Comparison, what: str) -> dict[str, tuple[float, float]]:
    """The lowest and the highest of the levels of the variants that have a figure: of each that all have."""
    having = {name: found.ready[name] for name, own in found.summaries.items() if what in own}
    each = [_levels({name: records}, *what.split(" ", 1)) for name, records in having.items()]
    common = [line for line in each[0] if all(line in one for one in each)] if each else []
    return {line: (min(one[line] for one in each), max(one[line] for one in each)) for line in common}


def _level(found: tuple[float, float] | None) -> Cell:
    if found is None:
        return NOTHING
    low, high = (f"{value:.1f}" for value in found)
    return Cell(low if low == high else f"{low} to {high}", sum(found) / 2)


def _one_kind_of_target(variants: Mapping[str, Sequence[Record]]) -> bool:
    kinds = {
        str(records[0].tree.get("losses")) + str(records[0].tree.get("targets"))
        for records in variants.values()
        if records
    }
    return len(kinds) <= 1


def _sources(records: Sequence[Record], commands: str) -> list[tuple[str, str]]:
    versions = sorted({one.versions for one in records})
    machines = sorted({f"{one.machine}, {one.threads} threads" for one in records})
    data = sorted({one.data for one in records})
    recipes = "\n\n".join(
        f"# {one.folder}\n{(one.folder / 'recipe.yaml').read_text()}" for one in records if one.seed == records[0].seed
    )
    return [
        ("Commands", commands),
        ("Versions", "\n".join(versions)),
        ("Machines", "\n".join(machines)),
        ("Training data", "\n".join(data)),
        ("Evaluation", "\n\n".join(sorted({one.evaluation for one in records}))),
        ("Resolved recipes", recipes),
    ]
