"""How does a page reach a reader? One HTML file that opens offline, and beside it each chart as SVG and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from sslzoo import files
from sslzoo.report.charts import Chart


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and what it is sorted by."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Table:
    """A table of a page, which a reader may sort by any column."""

    heading: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Page:
    """What a page says, from its verdict in words down to what it was made of."""

    title: str
    subtitle: str
    verdict: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Chart]
    sources: Sequence[tuple[str, str]]  # a heading, and plain text
    evidence: Sequence[str] = ()  # what the verdict rests on, folded
    made: Sequence[tuple[str, str]] = ()  # of what it was made: a word, and what there is to say
    left_out: Sequence[str] = ()
    sides: Sequence[tuple[str, str, Any]] = field(default=())  # of the fairness box


def number(value: float, digits: int = 1) -> Cell:
    """A figure as a cell; what is not known is empty, and sorted below all."""
    return Cell("", -1e308) if math.isnan(value) else Cell(f"{value:.{digits}f}", value)


def write(folder: Path, page: Page) -> Path:
    """Writes index.html into a folder, and each chart's SVG and CSV; raises RunError if they cannot be written."""
    files.make_folder(folder)
    for one in page.charts:
        files.write_whole(folder / f"{one.name}.svg", one.svg, lasting=False)
        files.write_whole(folder / f"{one.name}.csv", one.csv, lasting=False)
    environment = Environment(loader=PackageLoader("sslzoo.report", "."), autoescape=select_autoescape(["html"]))
    content: Mapping[str, Any] = {name: getattr(page, name) for name in Page.__dataclass_fields__}
    path = folder / "index.html"
    files.write_whole(path, environment.get_template("page.html").render(content), lasting=False)
    return path
