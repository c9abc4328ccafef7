"""What does a measured step look like? A table of 80 columns, and bars of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sslzoo.speed import STAGES, Result, ratios, unlike

# Okabe and Ito's, one a stage: they can be told apart by people who are color-blind too.
COLORS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#DDDDDD")


def table(results: Mapping[str, Result], apart: bool = False) -> str:
    """Results by name side by side, each number beside what it is; two of them with their ratio.

    `apart`: the second was measured earlier, so it may be of another machine; then no ratio is told.
    """
    rows = [("", [_short(name) for name in results]), *_rows(list(results.values()))]
    wide = [max(len(cell) for cell in column) for column in zip(*(cells for _, cells in rows), strict=True)]
    lines = [
        f"{name:<22}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, wide, strict=True))
        for name, cells in rows
    ]
    machines = {name: _machine(one) for name, one in results.items()}
    if len(set(machines.values())) == 1:
        lines.append(f"on {next(iter(machines.values()))}")
    else:
        lines += [f"{_short(name)} on {machine}" for name, machine in machines.items()]
    if len(results) == 2:
        lines += _beside(results, apart)
    return "\n".join(line.rstrip() for line in lines)


def _machine(one: Result) -> str:
    where = f"{one.processes} x " if one.processes > 1 else ""
    return f"{where}{one.device}, {one.threads} CPU threads a process, torch {one.torch}"


def _beside(results: Mapping[str, Result], apart: bool) -> list[str]:
    """How fast the first of two is beside the second, where that is a question."""
    first, second = results
    one, other = results[first], results[second]
    if apart and (differ := unlike(one, other)):
        return ["warning: they cannot be compared, for they differ in", *(f"  {name}" for name in differ)]
    median, best = ratios(one, other, apart)
    lines = [f"{_short(first)} is {median:.3f} times as fast as {_short(second)} (median); {best:.3f} (best)"]
    if differ := unlike(one, other, ("torch", "threads", "data")):
        lines += ["warning: they differ in", *(f"  {name}" for name in differ)]
    return lines


def _rows(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    def row(name: str, form: str, *values: float | str) -> tuple[str, list[str]]:
        return name, [form.format(value) for value in values]

    rows = [
        row("images a second", "{:.1f}", *(r.rate for r in results)),
        row("  best round", "{:.1f}", *(r.best for r in results)),
        row("images a step", "{}", *(str(r.images) for r in results)),
        row("GFLOP an image", "{:.3f}", *(r.flops / 1e9 for r in results)),
        row("ceiling, TFLOP/s", "{:.3f}", *(r.ceiling / 1e12 for r in results)),
        row("utilisation", "{:.1%}", *(r.utilisation for r in results)),
        row("peak memory, GB", "{}", *("-" if r.memory is None else f"{r.memory / 1e9:.2f}" for r in results)),
        row("precision", "{}", *(r.precision for r in results)),
        row("compiled", "{}", *("yes" if r.compile else "no" for r in results)),
        row("data", "{}", *(r.data for r in results)),
        row("steps timed", "{}", *(str(r.steps) for r in results)),
        row("  that stalled", "{}", *(str(r.stalls) for r in results)),
        row("step, ms", "{:.2f}", *(r.step * 1e3 for r in results)),
        row("  slowest", "{:.2f}", *(r.slowest * 1e3 for r in results)),
    ]
    if any(r.parallel != "none" for r in results):
        rows.append(row("parallel", "{}", *(r.parallel for r in results)))
    for name in STAGES:
        cells = [f"{r.stages[name] * 1e3:.2f} {r.stages[name] / sum(r.stages.values()):4.0%}" for r in results]
        rows.append((f"  {_TOLD[name]}", cells))
    return rows


_TOLD = {
    "wait": "waiting for data",
    "data": "to the device",
    "targets": "targets",
    "forward": "student's forward",
    "loss": "loss",
    "backward": "backward",
    "optimizer": "clip and optimizer",
    "EMA": "teacher follows",
    "rest": "rest",
}


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"...{name[3 - most :]}"


def chart(results: Mapping[str, Result], path: Path) -> None:
    """A bar for each result, of what its stages take a step; SVG, PNG or whatever the path's name ends in."""
    figure = Figure(figsize=(8, 1.6 + 0.6 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = [f"{_short(name, 40)}\n{r.rate:.0f} images/s, {r.utilisation:.0%}" for name, r in results.items()]
    left = [0.0] * len(results)
    for stage, color in zip(STAGES, COLORS, strict=True):
        widths = [r.stages[stage] * 1e3 for r in results.values()]
        axes.barh(names, widths, left=left, color=color, label=_TOLD[stage], edgecolor="white", linewidth=0.5)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("milliseconds of a step (mean)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
