"""A log: every line of metrics as a line of metrics.csv in the run folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from sslzoo import Progress, hookimpl

COLUMNS = ("step", "loss", "lr", "images_per_second")


@hookimpl
def sslzoo_log(metrics: Mapping[str, float], at: Progress, folder: Path) -> None:
    """Called on rank 0 with every line; an error here would end the run."""
    path = folder / "metrics.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(metrics)
