"""What does a study look like? Figures against cost, paired differences, and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sslzoo.compare.fairness import CLOSE
from sslzoo.compare.statistics import Difference
from sslzoo.report.charts import SVG, Chart, Rows, chart, color, curve, dash, legend
from sslzoo.report.records import Record

COSTS: tuple[tuple[str, Callable[[Record], float | None]], ...] = (
    ("images seen", lambda record: record.images),
    ("training FLOPs", lambda record: record.flops),
    ("device seconds", lambda record: record.seconds),
)


def against_cost(
    variants: Mapping[str, Sequence[Record]], levels: Mapping[str, Mapping[str, float]], title: str
) -> Chart:
    """Figures ("network probe/task") against what runs cost, a row each; every seed a point; `levels` as lines.

    A cost that all runs share has no panels, but a word in the caption.
    """
    records = [one for each in variants.values() for one in each]
    apart = [(label, cost) for label, cost in COSTS if _differ([cost(one) for one in records])] or [COSTS[0]]
    equal = [label for label, cost in COSTS if (label, cost) not in apart and any(cost(one) for one in records)]
    rows: Rows = []
    with rc_context(SVG):
        page = Figure(figsize=(10, 0.4 + 2.4 * len(levels)), layout="constrained")
        grid = page.subplots(len(levels), len(apart), sharey="row", sharex="col", squeeze=False)
        for line, what in zip(grid, levels, strict=True):
            network, _, key = what.partition(" ")
            for ax, (label, cost) in zip(line, apart, strict=True):
                for name, each in variants.items():
                    points = [(cost(one), one.figures.get(network, {}).get(f"{key}/top1"), one.seed) for one in each]
                    known = [(x, y, seed) for x, y, seed in points if x is not None and y is not None]
                    c, mark = color(list(variants), name)
                    xs, ys = [x for x, *_ in known], [y for _, y, _ in known]
                    if known:
                        ax.scatter(xs, ys, s=34, c=c, marker=mark, alpha=0.85, label=name)
                    told: dict[str, object] = {"figure": what, "cost": label, "variant": name}
                    rows += [told | {"seed": seed, "x": x, "y": y} for x, y, seed in known]
                _levels(ax, levels[what])
                told = {"figure": what, "cost": label, "seed": "", "x": ""}
                rows += [told | {"variant": line, "y": y} for line, y in levels[what].items()]
                ax.margins(x=0.15, y=0.12)
                ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
            line[0].set_title(what, fontsize=9, loc="left")
            line[0].set_ylabel("top-1, %")
        for ax, (label, _) in zip(grid[-1], apart, strict=True):
            ax.set_xlabel(label)
        legend(page, page.axes[0])
    caption = (
        "Top-1 in percent of each run against what its training cost: arithmetic (FLOPs: multiply and add count as "
        "two, forward and backward, mean over mask draws), device seconds (in the training loop, of all processes: of "
        "GPUs time, of cores work), images seen. "
        "Every seed is a point; lines: the same encoders before training (their mean), and the commonest class."
    )
    caption += f" Alike for all runs, and so not drawn: {', '.join(equal)}." if equal else ""
    return chart("cost", title, caption, page, rows)


def _differ(values: Sequence[float | None]) -> bool:
    known = [one for one in values if one is not None]
    return bool(known) and max(known) - min(known) > CLOSE * max(known)


def differences(found: Mapping[str, Mapping[str, Difference]], baseline: str, variants: Sequence[str]) -> Chart:
    """Paired differences to the baseline with intervals, a panel for each figure."""
    rows: Rows = []
    names = list(found)
    some = list(dict.fromkeys(what for own in found.values() for what in own))
    with rc_context(SVG):
        page = Figure(
            figsize=(10, (0.75 + 0.28 * max(1, len(names))) * max(1, -(-len(some) // 3))), layout="constrained"
        )
        across = min(3, max(1, len(some)))
        grid = page.subplots(max(1, -(-len(some) // across)), across, squeeze=False, sharey=True).flatten()
        for ax, what in zip(grid, some, strict=False):
            for position, name in enumerate(names):
                one = found[name].get(what)
                if one is None:
                    continue
                c, _ = color(variants, name)
                ax.scatter(one.values, [position] * len(one.values), s=12, c=c, alpha=0.45)
                if one.low is not None and one.high is not None:
                    ax.plot([one.low, one.high], [position, position], c=c, linewidth=2)
                ax.scatter([one.mean], [position], s=42, c=c, marker="D")
                rows.append(
                    {
                        "variant": name,
                        "figure": what,
                        "difference": one.mean,
                        "seed by seed": " ".join(map(str, one.values)),
                        "low": one.low,
                        "high": one.high,
                        "p": one.p,
                        "p alone": one.alone,
                    }
                )
            ax.axvline(0, color="#999999", linewidth=1)
            ax.set_title(what, fontsize=9)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
        for ax in grid[len(some) :]:
            ax.set_axis_off()
    caption = (
        f"Difference to {baseline} in points of percent, seed by seed (dots), their mean (diamond), and a 95 % "
        "interval (Student's t on the error of a bootstrap over seeds and test images together, or over seeds alone "
        "for a probe that does not tell which images it got right). Left of the line: worse than the baseline."
    )
    return chart("differences", f"Differences to {baseline}", caption, page, rows)


def curves(variants: Mapping[str, Sequence[Record]], keys: Mapping[str, str], name: str, caption: str) -> Chart:
    """Metrics over images seen: mean over seeds, with a band from the lowest to the highest."""
    rows: Rows = []
    with rc_context(SVG):
        page = Figure(figsize=(10, 3.0), layout="constrained")
        for ax, (key, label) in zip(page.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True):
            for variant, records in variants.items():
                x, lines = aligned(records, key)
                if not len(x):
                    continue
                c, _ = color(list(variants), variant)
                mean, low, high = lines.mean(0), lines.min(0), lines.max(0)
                curve(ax, x, mean, c, variant, dash(list(variants), variant))
                ax.fill_between(x, low, high, color=c, alpha=0.18, linewidth=0)
                for numbers in zip(x.tolist(), mean.tolist(), low.tolist(), high.tolist(), strict=True):
                    told = dict(zip(("images", "mean", "low", "high"), numbers, strict=True))
                    rows.append({"variant": variant, "metric": key, **told})
            ax.set_title(label, fontsize=10, loc="left")
            ax.set_xlabel("images seen")
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        legend(page, page.axes[0])
    return chart(name, "While training", caption, page, rows)


def aligned(records: Iterable[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric of several seeds at the steps that all logged: images [n], values [seeds n], smoothed a little."""
    each = []
    for record in records:
        points = {line["step"] * record.batch: line[key] for line in record.lines if line.get(key) is not None}
        if points:
            each.append(points)
    if not each:
        return np.zeros(0), np.zeros((0, 0))
    x = sorted(set.intersection(*(set(points) for points in each)))
    values = np.array([[points[at] for at in x] for points in each], np.float64)
    wide = max(1, len(x) // 40)
    if wide > 1 and len(x):
        kernel = np.ones(wide) / wide
        padded = np.pad(values, ((0, 0), (wide // 2, wide - 1 - wide // 2)), mode="edge")
        values = np.stack([np.convolve(line, kernel, mode="valid") for line in padded])
    return np.array(x, np.float64), values


def _levels(ax: Axes, lines: Mapping[str, float]) -> None:
    for number, (name, value) in enumerate(lines.items()):
        ax.axhline(value, color="#999999", linewidth=1, linestyle=("--", ":", "-.")[number % 3], label=name)
