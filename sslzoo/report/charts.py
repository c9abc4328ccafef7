"""What does a chart of a page consist of? An SVG, its numbers as CSV, and a caption for a reader of papers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's colors, told apart by people who are color-blind too (the blue lighter, to be seen on black); and a
# mark for each, for print.
COLORS = ("#2487C7", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B", "#8A6D00")
MARKS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")
SVG: Any = {"svg.fonttype": "none", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
SVG |= {"text.color": "#777777", "axes.labelcolor": "#777777", "axes.edgecolor": "#999999", "xtick.color": "#777777"}
SVG |= {"ytick.color": "#777777", "svg.hashsalt": "sslzoo"}  # greys that can be read on white and on black
Rows = list[dict[str, object]]
Points = Sequence[float] | NDArray[Any]


@dataclass(frozen=True)
class Chart:
    """A figure of the page."""

    name: str  # of its files
    title: str
    caption: str
    svg: str
    csv: str


def chart(name: str, title: str, caption: str, figure: Figure, rows: Rows) -> Chart:
    """A matplotlib figure and its numbers as a chart."""
    with rc_context(SVG):
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    return Chart(name, title, caption, _own_names(svg, name), as_csv(rows))


def _own_names(svg: str, name: str) -> str:
    """Several SVGs stand in one page: names of clips and markers are made each figure's own.

    Images lose theirs, which nothing refers to: it is a hash of the pixels, and two images may be alike.
    """
    svg = re.sub(r' id="image[0-9a-f]+"', "", svg)
    for attribute in ('id="', 'href="#', "url(#"):
        svg = svg.replace(attribute, f"{attribute}{name}-")
    return svg


def as_csv(rows: Rows) -> str:
    """Rows with the same keys as CSV."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def color(names: Sequence[str], name: str) -> tuple[str, str]:
    """A variant's color and mark, the same in every chart; of many, no two have both in common."""
    number = list(names).index(name)
    return COLORS[number % len(COLORS)], MARKS[(number + number // len(COLORS)) % len(MARKS)]


def dash(names: Sequence[str], name: str) -> str:
    """A variant's kind of line, which tells those of one color apart."""
    return DASHES[list(names).index(name) // len(COLORS) % len(DASHES)]


def curve(ax: Axes, x: Points, y: Points, color: str, label: str, dash: str = "-") -> None:
    """A line through points; a single one is a dot, for a line through it would be nothing."""
    mark = "o" if len(x) == 1 else ""
    ax.plot(x, y, color=color, linewidth=1.6, linestyle=dash, label=label, marker=mark, markersize=4)


def legend(page: Figure, ax: Axes) -> None:
    """One legend for a figure, below it: what the marks of one of its axes are; on the left, which a phone shows."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        page.legend(handles, labels, loc="outside lower left", ncols=min(3, len(labels)), frameon=False, fontsize=9)
