"""How does sslzoo say that something is wrong? Place, what was found, the nearest name, what is accepted."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """A mistake that a person can mend. The command line prints it without a traceback and leaves with `exit_code`."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class PluginError(UserError):
    """A plugin could not be loaded, or two plugins offer one name."""


class RunError(UserError):
    """A run cannot start or go on: its folder, its checkpoints, its data or its numbers."""


class ImageError(OSError):
    """An image cannot be read. Another stands in for it, and it is counted."""

    @classmethod
    def of(cls, error: Exception) -> ImageError:
        """The same word for whatever a decoder raised."""
        return cls(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Problem:
    """One thing wrong at one place of a recipe."""

    place: str  # dotted path in the recipe, such as masks.image.target_scale
    message: str  # may have several lines
    line: int | None = None  # line in the file; 0 for what `--set` gave, None for what stands nowhere


class RecipeError(UserError):
    """Everything wrong with a recipe, at once."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__(self._text())

    def _text(self) -> str:
        many = len(self.problems)
        lines = [f"{self.source}: {many} problem{'s' if many != 1 else ''}"]
        for problem in self.problems[:_MOST]:
            where = {None: "", 0: "--set  "}.get(problem.line, f"line {problem.line}  ")
            lines += ["", f"{where}{_clipped(problem.place, 200)}"]
            lines += [f"    {_clipped(line, 1000)}" for line in problem.message.splitlines()]
        if many > _MOST:
            lines += ["", f"and {many - _MOST} more"]
        return "\n".join(lines)


_MOST = 50  # problems told at once
RENAMED = {"grey": "grayscale", "centre": "center", "solarise": "solarize", "held": "monitor"}  # words of old recipes
RENAMED |= {"held_every": "monitor_every"}


class _Short(reprlib.Repr):
    """Python's short texts of values, with YAML's words for the three that a recipe writes otherwise."""

    def repr_NoneType(self, _value: None, _level: int) -> str:  # noqa: N802 - reprlib looks for the name of the type
        return "null"

    def repr_bool(self, value: bool, _level: int) -> str:
        return str(value).lower()


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 3, 6, 6, 6
_SHORT.maxstring = _SHORT.maxother = 120


def shown(value: object) -> str:
    """What was found, quoted: long texts, numbers and lists are cut short, so that a message stays one."""
    return _SHORT.repr(value)


def printable(text: str) -> str:
    """Control characters, which a name may hold and a terminal would obey, as escapes; lines and tabs are kept."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def _clipped(line: str, most: int) -> str:
    line = printable(line[: most + 1])
    return line if len(line) <= most else line[:most] + " ..."


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The new name of a word that was renamed, else the closest of `names`, or None if nothing is close."""
    names = list(names)
    if RENAMED.get(str(name)) in names:
        return RENAMED[str(name)]
    found = difflib.get_close_matches(str(name), names, n=1, cutoff=0.55)
    return found[0] if found else None


def is_no_run(path: Path, what: str) -> UserError:
    """What to raise for a path at which no run lies: `what` is known of one that exists; else the nearest beside it."""
    if path.exists():
        return UserError(f"{path} {what}")
    return UserError(f"there is no folder {path}{did_you_mean_beside(path)}")


def did_you_mean_beside(path: Path) -> str:
    """`; did you mean runs/x?` of the folders and YAML files beside a path at which nothing lies, or nothing."""
    there = path.parent.iterdir() if os.access(path.parent, os.R_OK) and path.parent.is_dir() else ()
    beside = [one.name for one in there if one.suffix in (".yaml", ".yml") or one.is_dir()]
    close = nearest(path.name, beside)
    return f"; did you mean {path.with_name(close)}?" if close else ""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing; `; it is called x now` for a word of old recipes."""
    found = nearest(name, names)
    if found is None:
        return ""
    return f"; it is called {found} now" if RENAMED.get(str(name)) == found else f"; did you mean {found}?"
