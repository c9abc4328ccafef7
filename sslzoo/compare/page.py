"""What does a reader see of a comparison? One HTML file that opens offline: the verdict first, then all it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sslzoo.compare import charts
from sslzoo.compare.fairness import Box, count
from sslzoo.compare.statistics import Summary, mean, wording
from sslzoo.compare.table import Comparison, verdict
from sslzoo.errors import UserError
from sslzoo.report import html, insides
from sslzoo.report import page as page_of_run
from sslzoo.report.charts import Chart
from sslzoo.report.html import Cell, Table
from sslzoo.report.insides import Look
from sslzoo.report.records import Record

SIDES = (
    ("question", "The question"),
    ("beside", "Beside the question"),
    ("unfair", "Unfair"),
    ("same", "The same"),
)


def write(
    folder: Path, title: str, variants: Mapping[str, Sequence[Record]], found: Comparison, fair: Box, commands: str
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
            verdict=verdict(found),
            left_out=[*found.left_out, *blind],
            sides=[(name, heading, getattr(fair, name)) for name, heading in SIDES] if many > 1 else [],
            tables=list(_tables(variants, found)),
            charts=[*_charts(variants, found), *insides.charts(looks)],
            sources=_sources(records, commands),
        ),
    )


def opened_looks(variants: Mapping[str, Sequence[Record]]) -> tuple[list[Look], list[str]]:
    """The network of one run of each variant, its first seed that can be opened; and what none could be of, and why."""
    looks, blind = [], []
    for name, records in variants.items():
        why = ""
        for record in records:
            try:
                looks.append(page_of_run.opened(record.folder, name))
                break
            except UserError as error:
                why = why or str(error)
        else:
            blind.append(f"pictures of {name}: {why}")
    others = [f"pictures of {title}: its test images are not those of the first" for title in insides.unlike(looks)]
    return looks, blind + others


def _tables(variants: Mapping[str, Sequence[Record]], found: Comparison) -> Iterator[Table]:
    for network in found.networks:
        yield _figures(network, variants, found)
        if found.differences:
            yield _differences(network, found)
    rows = [_cost_row(name, records) for name, records in variants.items()]
    head = ["variant", "images", "steps", "training FLOPs", "device s", "patch tokens", "parameters", "peak bytes"]
    yield Table("Cost", "Means over finished runs. FLOPs: forward and backward, mean over mask draws.", head, rows)


def _figures(network: str, variants: Mapping[str, Sequence[Record]], found: Comparison) -> Table:
    own = _of_network(network, found)
    rows = [[Cell(name, name), *(_spread(one[what]) for what in own)] for name, one in found.summaries.items()]
    levels = [_levels(variants, network, key) for key in own.values()]
    for line in ("untrained", "chance"):
        if all(line in one for one in levels):
            rows.append([Cell(f"({line})", f"~{line}"), *(Cell(f"{one[line]:.1f}", one[line]) for one in levels)])
    note = (
        "Top-1 in percent on test images: mean ± standard deviation over seeds. Untrained: the mean of the same "
        "encoders before training. Chance: the commonest class."
    )
    return Table(f"Figures of the {network}", note, ["variant", *own.values()], rows)


def _differences(network: str, found: Comparison) -> Table:
    own = _of_network(network, found)
    rows = [
        [Cell(name, name), *(Cell(wording(one[what]), one[what].mean) for what in own)]
        for name, one in found.differences.items()
    ]
    note = (
        f"Points of percent above {found.baseline}, paired by seed; 95 % interval by a bootstrap over seeds "
        "and test images; p of a paired t-test over seeds, corrected by Holm's method for all cells of all "
        "tables of differences (alone: as if it were the only one)."
    )
    whys = sorted({one[what].why for one in found.differences.values() for what in own} - {""})
    note += f" Where no p stands, there was no test: {'; '.join(whys)}." if whys else ""
    return Table(f"Differences of the {network}", note, ["variant", *own.values()], rows)


def _of_network(network: str, found: Comparison) -> dict[str, str]:
    """The figures of a network, "network probe/task", each with its "probe/task"."""
    return {what: what.removeprefix(f"{network} ") for what in found.figures if what.startswith(f"{network} ")}


def _spread(one: Summary) -> Cell:
    return Cell(f"{one.mean:.1f}" + ("" if one.std is None else f" ± {one.std:.1f}"), one.mean)


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
    return [Cell(name, name), *(Cell("?", -1) if x is None else Cell(count(x), x) for x in means)]


def _charts(variants: Mapping[str, Sequence[Record]], found: Comparison) -> Iterator[Chart]:
    if found.figures:
        what = _main_figure(found)
        network, _, key = what.partition(" ")
        levels = _levels(variants, network, key)
        value = lambda one: one.figures.get(network, {}).get(f"{key}/top1")  # noqa: E731
        yield charts.against_cost(variants, value, "top-1 in percent", levels, f"{what} against cost")
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


def _main_figure(found: Comparison) -> str:
    linear = [what for what in found.figures if " linear" in what]
    return (linear or list(found.figures))[0]


def _levels(variants: Mapping[str, Sequence[Record]], network: str, key: str) -> dict[str, float]:
    task = key.rpartition("/")[2]
    records = [one for each in variants.values() for one in each]
    untrained = [
        one.untrained[network][f"{key}/top1"] for one in records if f"{key}/top1" in one.untrained.get(network, {})
    ]
    chance = [one.chance[task] for one in records if task in one.chance]
    levels = {"untrained": sum(untrained) / len(untrained)} if untrained else {}
    return levels | ({"chance": sum(chance) / len(chance)} if chance else {})


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
