"""What lies in a run folder?

data.jsonl       what the training data were, a line for each change
recipe.yaml      the resolved recipe with versions; trains again as it is
metrics.jsonl    one object a line
checkpoints/     step-000001000.safetensors ...
unreadable.jsonl images that could not be read        nonfinite/   batches that gave nan or inf
eval/            figures                              report/      plots
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sslzoo import files
from sslzoo.errors import RunError
from sslzoo.run.metrics import Lines

_PLUGIN = re.compile(r"^# plugin (.+) (\S+)$", re.MULTILINE)
ORIGIN = "# Resolved from "  # how the file begins that `recipe.resolve` makes
BRACKETS = 10_000  # more are no recipe, and take YAML minutes

_IDENTITY = files.typed(images=int, tasks=dict, fingerprint=str, decoder=str)

# One of these, whatever else was lost, makes a folder a run's.
OWN = ("recipe.yaml", "checkpoints", "metrics.jsonl", "attempts.jsonl", "data.jsonl", "eval", "lock", "log.txt")
OWN += ("state.json", "launch.json", "failure.txt", "output.txt", "drill.txt")

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

    @cached_property
    def metrics(self) -> Lines:
        """The run's lines of metrics."""
        return Lines(self.path / "metrics.jsonl")

    def refuse_others(self) -> None:
        """Sees that no run is begun among files that are not a run's, such as a data set's; changes nothing.

        Raises:
            RunError: the folder holds some, and nothing of a run; or its name has bytes that are no UTF-8, under which
                safetensors would write weights and not read them again.
        """
        if os.fsencode(self.path).decode(errors="replace") != str(self.path):
            raise RunError(f"the path {self.path} holds bytes that are no UTF-8; choose another folder with --out")
        try:
            names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        except OSError as error:
            raise RunError(f"the run folder {self.path} cannot be read: {error}") from error
        others = [name for name in names if not name.startswith(".")]
        own = set(names) & set(OWN)
        if own == {self.recipe.name} and self._is_own_hand():
            raise RunError(f"{self.recipe} was not written by sslzoo, and a run would replace it; choose --out")
        if others and not own:
            some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise RunError(
                f"{self.path} is no run folder and not empty: it holds {some}\nchoose another folder with --out"
            )

    def _is_own_hand(self) -> bool:
        """Whether recipe.yaml is a recipe that a person wrote, not the resolved one of a run."""
        text = files.read_text(self.recipe)[0] or ""
        return self.tree()[0] is not None and not text.startswith(ORIGIN)

    def refuse(self, resolved: str, differences: Differences) -> None:
        """Sees that the folder holds no run of another recipe; changes nothing.

        `differences` takes what its recipe.yaml says and gives a line for each key that may not differ and does
        (`recipe.resuming.refuse` passes it).

        Raises:
            RunError: it does; says where they differ.
        """
        had = self.tree()[0]
        rows = differences(had) if had is not None else []
        if rows and not _is_torn(files.read_text(self.recipe)[0] or "", resolved):
            lines = "".join(f"    {row}\n" for row in rows)
            raise RunError(f"{self.path} holds a run of another recipe:\n{lines}choose another folder with --out")

    def prepare(self, resolved: str, warn: Callable[[str], None]) -> None:
        """Makes the folder and writes its recipe; `warn` hears of damaged files.

        Raises:
            RunError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files.remove_torn(self.path)
            if self.fault:
                warn(f"warning: {self.fault}; it is written anew, and the damaged one kept as recipe.damaged.yaml")
                self.recipe.replace(self.recipe.with_suffix(".damaged.yaml"))
        except OSError as error:
            raise RunError(f"the run folder {self.path} cannot be written: {error}") from error
        torn = self.metrics.found()[1]
        if torn:
            warn(f"warning: {torn}")
        begun = (files.read_text(self.recipe)[0] or "").partition("\n")[0]
        if begun.startswith(ORIGIN):  # a run goes on from this very file, and still comes from where it came from
            resolved = resolved.replace(resolved.partition("\n")[0], begun, 1)
        files.write_whole(self.recipe, resolved)

    @property
    def fault(self) -> str:
        """What is wrong with recipe.yaml, or nothing."""
        return self.tree()[1]

    def begun_with(self, section: str, key: str) -> Any:
        """What the recipe of the run in this folder says; None where there is none."""
        return ((self.tree()[0] or {}).get(section) or {}).get(key)

    @property
    def plugins(self) -> dict[str, str]:
        """Plugins that the recipe of the run in this folder uses, and their versions; of a file: its content's hash."""
        return dict(_PLUGIN.findall(files.read_text(self.recipe)[0] or ""))

    def upgraded(self, resolved: str) -> list[str]:
        """A line for each plugin whose version (of a file: its content) is not what it was when this run began."""
        had = self.plugins
        now = dict(_PLUGIN.findall(resolved))
        changed = [name for name in had if now.get(name, had[name]) != had[name]]
        return [f"plugin {name} was {had[name]} and is {now[name]}" for name in changed]

    def recognize(self, found: Mapping[str, Any]) -> None:
        """Sees that the training data are what they were (`identity`); changes nothing.

        Raises:
            RunError: they are not; says where they differ. `forget_data` allows it.
        """
        had = self._data()
        rows = [
            f"    {key}: {had.get(key)} then, {value} now\n" for key, value in found.items() if had.get(key) != value
        ]
        if "fingerprint" in had and rows:
            raise RunError(
                f"the training data are not those that the run in {self.path} began with:\n{''.join(rows)}"
                "go on with these with --allow-changed-data, or choose another folder with --out"
            )

    def note_data(self, found: Mapping[str, Any], start: int, warn: Callable[[str], None]) -> None:
        """Writes down what the training data are, if the last line says otherwise; `warn` hears where none tells."""
        rows, fault = self._data_lines()
        if fault or (start and not rows):
            damage = fault or f"{self.path / 'data.jsonl'} is gone"
            warn(f"warning: {damage}; whether the training data are those of before is not known")
        if self._data() != found:
            try:
                files.append(self.path / "data.jsonl", [found])
            except RunError as error:  # such as a folder of this name: no reason to leave good checkpoints
                warn(f"warning: {error}; a later start will not know what the training data were")

    def forget_data(self) -> None:
        """The next start may find other training data than the last; what they were stays written."""
        if "fingerprint" in self._data():
            files.append(self.path / "data.jsonl", [{"change": "allowed"}])

    def data(self) -> tuple[list[dict[str, Any]], str]:
        """What the training data were (`identity`), a row for each change; and what is wrong with the file."""
        rows, fault = self._data_lines()
        return [row for row in rows if "fingerprint" in row], fault

    def _data_lines(self) -> tuple[list[dict[str, Any]], str]:
        return files.read_rows(self.path / "data.jsonl", _is_identity)

    def _data(self) -> dict[str, Any]:
        """The last line: an identity, or that a change was allowed."""
        rows = self._data_lines()[0]
        return rows[-1] if rows else {}

    def note(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines to a .jsonl file of the folder; raises RunError if it cannot."""
        files.append(self.path / name, lines)

    def tree(self) -> tuple[dict[str, Any] | None, str]:
        """What recipe.yaml says, or None where that is not known; and what is wrong with it."""
        text, fault = files.read_text(self.recipe)
        if text is None:
            return None, fault
        try:
            tree = yaml.safe_load(text) if text.count("[") + text.count("{") < BRACKETS else None
        except (yaml.YAMLError, ValueError, RecursionError):
            tree = None
        if not isinstance(tree, dict) or not {"name", "run"} <= tree.keys():
            return None, f"{self.recipe} is damaged: it does not hold a whole recipe"
        return tree, ""


def _is_identity(row: Mapping[str, Any]) -> bool:
    """What `identity` tells, whole; or that a change was allowed."""
    return "change" in row or (_IDENTITY(dict(row)) and None not in (row.get("images"), row.get("fingerprint")))


def _is_torn(text: str, whole: str) -> bool:
    """Whether a text is the beginning of another, headers aside."""
    bodies = ["".join(x for x in one.splitlines(keepends=True) if not x.startswith("#")) for one in (text, whole)]
    return bodies[1].startswith(bodies[0])
