"""What lies in a run folder?

recipe.yaml      the resolved recipe with versions; trains again as it is
metrics.jsonl    one object a line
checkpoints/     step-000001000.safetensors ...
unreadable.jsonl images that could not be read        nonfinite/   batches that gave nan or inf
eval/            figures                              report/      plots
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sslzoo.errors import RunError
from sslzoo.run.metrics import Lines

_PLUGIN = re.compile(r"^# plugin (\S+) (\S+)$", re.MULTILINE)

Differences = Callable[[Mapping[str, Any]], list[str]]


@dataclass(frozen=True)
class Folder:
    """A run folder, by its parts."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Lines:
        """The run's lines of metrics."""
        return Lines(self.path / "metrics.jsonl")

    def prepare(self, resolved: str, differences: Differences) -> None:
        """Makes the folder for this recipe, or sees that it already holds the same one.

        `differences` are told from what its recipe.yaml says: `recipe.compare.claim` gives them.

        Raises:
            RunError: it cannot be written, or holds another recipe; says where they differ.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left in self.checkpoints.glob("*.writing"):
                left.unlink()  # a save that a kill cut short
            if self.recipe.exists():
                self._compare(differences)
            self.recipe.write_text(resolved)
        except OSError as error:
            raise RunError(f"the run folder {self.path} cannot be written: {error}") from error

    def upgraded(self, resolved: str) -> list[str]:
        """A line for each plugin whose version (of a file: its content) is not what it was when this run began."""
        had = dict(_PLUGIN.findall(self.recipe.read_text())) if self.recipe.exists() else {}
        now = dict(_PLUGIN.findall(resolved))
        changed = [name for name in had if now.get(name, had[name]) != had[name]]
        return [f"plugin {name} was {had[name]} and is {now[name]}" for name in changed]

    def note(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines to a .jsonl file of the folder."""
        with (self.path / name).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _compare(self, differences: Differences) -> None:
        rows = differences(yaml.safe_load(self.recipe.read_text()) or {})
        if rows:
            told = "".join(f"    {row}\n" for row in rows)
            raise RunError(f"{self.path} holds a run of another recipe:\n{told}choose another folder with --out")
