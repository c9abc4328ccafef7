"""What does a cluster want to hear? A profile: a small YAML file that says it once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, Field

from sslzoo.errors import Problem, RecipeError, UserError, did_you_mean
from sslzoo.plugins import Catalogue
from sslzoo.recipe import signature, yamltext

_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d{2})(?::(\d{2}))?")  # 3-00:00:00, 12:30:00 or 12:30
_SHORT = {"d": 24 * 60, "h": 60, "m": 1}


class Container(BaseModel):
    """An image that the job's processes run in, through SLURM's container plugin (pyxis)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    mounts: tuple[str, ...] = ()
    python: str = "python"  # inside the image


class Profile(BaseModel):
    """The keys of a cluster profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int = Field(8, ge=0)
    processes_per_node: int | None = Field(None, ge=1)  # one a GPU if left out
    cpus_per_process: int = Field(8, ge=1)
    memory: str | None = None  # of a node, such as 900G; 0 is all of it
    time: str = "24h"
    signal_lead: int = Field(180, ge=10)  # seconds between SLURM's signal and the time limit
    setup: tuple[str, ...] = ()  # lines of shell before the job
    environment: dict[str, str] = {}
    container: Container | None = None
    sbatch: dict[str, str | int | bool] = {}  # any other key of sbatch

    def processes(self, gpus: int) -> int:
        """Processes on a node."""
        return self.processes_per_node or max(1, gpus)


def minutes(text: str) -> int:
    """A time limit in minutes: 72h, 90m, 3d, 12:30:00 or 3-00:00:00.

    Raises:
        ValueError: it cannot be read.
    """
    text = str(text).strip()
    if text[-1:] in _SHORT and text[:-1].isdigit():
        return int(text[:-1]) * _SHORT[text[-1]]
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"found {text!r}; a time is wanted, such as 72h, 90m, 12:30:00 or 3-00:00:00")
    days, hours, mins, seconds = (int(part or 0) for part in found.groups())
    return max(1, (days * 24 + hours) * 60 + mins + (seconds > 0))


def load(name: str, installed: Catalogue) -> Profile:
    """A profile by file, or by name: the user's own first, then those that ship.

    Raises:
        UserError: there is none; names the nearest and where they are looked for.
        RecipeError: everything wrong with it, at once.
    """
    path = Path(name) if Path(name).is_file() else names(installed).get(name)
    if path is None:
        known = names(installed)
        raise UserError(
            f"no cluster profile is called {name!r}{did_you_mean(name, known)}\n"
            f"there is: {', '.join(known) or 'none'}; your own lie in {home()}"
        )
    text = yamltext.read(path, str(path))
    return Profile.model_construct(**_checked(text))


def names(installed: Catalogue) -> Mapping[str, Path]:
    """Every profile by name."""
    folders = [folder / "clusters" for folder in installed.recipes] + [home()]
    return {path.stem: path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def home() -> Path:
    """Where a user's own profiles lie."""
    return Path(click.get_app_dir("sslzoo")) / "clusters"


def _checked(text: yamltext.Text) -> dict[str, Any]:
    keys, problems = signature.validate(Profile, text.tree, "", "a cluster profile")
    if not problems:
        try:
            minutes(keys["time"])
        except ValueError as error:
            problems = [Problem("time", str(error))]
    if problems:
        found = [Problem(one.place.strip("."), one.message, text.line(one.place.strip("."))) for one in problems]
        raise RecipeError(text.source, found)
    return keys
