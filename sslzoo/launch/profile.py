"""What does a cluster want to hear? A profile: a small YAML file that says it once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ConfigDict, Field

from sslzoo.errors import Problem, UserError, did_you_mean
from sslzoo.plugins import Catalogue
from sslzoo.recipe import signature, yamltext

_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,5}):(\d{2})(?::(\d{2}))?", re.ASCII)  # 3-00:00:00, 12:30:00 or 12:30
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_KEY = re.compile(r"[A-Za-z][\w-]*", re.ASCII)
_SHORT_TIME = re.compile(r"(\d{1,6})([dhm])", re.ASCII)
_ASKING = re.compile(r"gres|gpus|gpus-per-\w+|tres-per-\w+", re.ASCII)  # keys of sbatch; gres-flags asks for nothing
_OF_A_NODE = ("gres", "gpus-per-node", "tres-per-node")  # those whose number is of a node, as gpus_per_node
_MEMORY = re.compile(r"(\d{1,9})([MGT]?)B?", re.ASCII | re.IGNORECASE)
_MEGABYTES = {"": 1, "M": 1, "G": 1024, "T": 1024**2}
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
    gpu_type: str | None = None  # where GPUs are asked for by type: a100 makes --gpus-per-node=a100:8
    processes_per_node: int | None = Field(None, ge=1)  # one a GPU if left out
    cpus_per_process: int = Field(8, ge=1)
    memory: str | None = None  # of a node, such as 900G; 0 is all of it
    probing_memory: str | None = None  # of the job that probes; a process's share of `memory` if left out
    time: str = "24h"
    probing_time: str = "24h"  # of the job that probes a finished run, on one GPU
    signal_lead: int = Field(180, ge=10)  # seconds between SLURM's signal and the time limit
    setup: tuple[str, ...] = ()  # lines of shell before the job
    environment: dict[str, str] = {}
    container: Container | None = None
    sbatch: dict[str, str | int | bool] = {}  # any other key of sbatch

    def processes(self, gpus: int) -> int:
        """Processes on a node."""
        return self.processes_per_node or max(1, gpus)

    @property
    def own(self) -> dict[str, Any]:
        """The keys of `sbatch`, in one spelling: the same key written in two ways would stand in a script twice."""
        return {key.replace("-", "_"): value for key, value in self.sbatch.items()}

    @property
    def requeues(self) -> bool:
        """Whether a job that was stopped or preempted is queued again."""
        own = self.own
        return own.get("requeue", True) is not False and own.get("no_requeue", False) is False

    def of_one_process(self, gpus: int) -> Profile:
        """The same for a job of one process, after one that has `gpus` of each node: it asks for no whole node."""
        found = _MEMORY.fullmatch(self.memory or "")
        share = int(found[1]) * _MEGABYTES[found[2].upper()] // self.processes(gpus) if found else 0
        memory = self.probing_memory or (f"{share}M" if share else None)  # 0 would be all of a node
        sbatch = {key: value for key, value in self.sbatch.items() if key != "exclusive"}
        sbatch = {key: value for key, value in sbatch.items() if not gpus or not asks_for_gpus(key, value)}
        return self.model_copy(update={"processes_per_node": 1, "memory": memory, "sbatch": sbatch})


def asks_for_gpus(key: str, value: str | int | bool) -> bool:
    """Whether a key of sbatch asks for GPUs in its own way, such as gres: gpu:a100:8."""
    return value is not False and bool(_ASKING.fullmatch(key.replace("_", "-"))) and "gpu" in f"{key}{value}"


def gpus_asked(key: str, value: str | int | bool) -> int | None:
    """GPUs of a node that a key of sbatch asks for, such as gres: gpu:a100:8; None where it tells none."""
    if not asks_for_gpus(key, value) or key.replace("_", "-") not in _OF_A_NODE:
        return None
    of_gpus = [one for one in str(value).split(",") if "gpu" in f"{key}{one}"]
    found = [int(one.rpartition(":")[2]) for one in of_gpus if re.search(r"(^|:)[0-9]{1,6}$", one)]
    return sum(found) if found else None


def minutes(text: str) -> int:
    """A time limit in minutes: 72h, 90m, 3d, 12:30:00 or 3-00:00:00.

    Raises:
        ValueError: it cannot be read.
    """
    text = str(text).strip()
    short, found = _SHORT_TIME.fullmatch(text), _TIME.fullmatch(text)
    if short is not None:
        total = int(short[1]) * _SHORT[short[2]]
    elif found is not None:
        days, hours, mins, seconds = (int(part or 0) for part in found.groups())
        total = (days * 24 + hours) * 60 + mins + (seconds > 0)
    else:
        raise ValueError(f"found {text[:80]!r}; a time is wanted, such as 72h, 90m, 12:30:00 or 3-00:00:00")
    if total < 1:
        raise ValueError(f"found {text!r}; a time of at least a minute is wanted")
    return total


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
    problems = [*problems, *_unsafe(text.tree)]
    for key in ("time", "probing_time"):
        try:
            minutes(text.tree.get(key, "24h"))
        except ValueError as error:
            problems.append(Problem(key, str(error)))
    if problems:
        raise text.error([*dict.fromkeys(Problem(one.place.strip("."), one.message) for one in problems)])
    return keys


def _unsafe(tree: Mapping[str, Any]) -> list[Problem]:
    """What cannot stand on a line of a batch script; `setup` is shell by purpose."""
    found = [
        Problem(place, f"found {value!r}; a line of text without control characters is wanted")
        for place, value in _texts({key: value for key, value in tree.items() if key != "setup"})
        if not value.isprintable()
    ]
    for section, pattern, wanted in (
        ("environment", _VARIABLE, "the name of an environment variable"),
        ("sbatch", _KEY, "a key of sbatch without its dashes, such as reservation"),
    ):
        names = tree.get(section)
        names = names if isinstance(names, Mapping) else {}
        found += [
            Problem(f"{section}.{name}", f"found {name!r}; {wanted} is wanted")
            for name in names
            if not pattern.fullmatch(str(name))
        ]
    return found


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a tree, with its place."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts(one, f"{place}.{key}".strip("."))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one, place)
    elif isinstance(value, str):
        yield place, value
