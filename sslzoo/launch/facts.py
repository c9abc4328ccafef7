"""What must a table know of a run beside its figures? Its arithmetic, its data, its machine, and what it ran with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sslzoo.plugins import Catalogue
from sslzoo.recipe.fit import Flow
from sslzoo.recipe.recipe import Recipe, plugin_versions
from sslzoo.run.processes import World

PACKAGES = ("sslzoo", "torch", "torchvision", "timm", "numpy", "pillow")
FREE = ("micro", "compile", "shard", "unreadable")  # keys of `run` that may change on the way, and numbers with them


def of_run(flow: Flow) -> dict[str, Any]:
    """What a rehearsed step tells: arithmetic of an image (forward and backward), parameters by part."""
    found: dict[str, Any] = {"flops_per_image": flow.flops, "parameters": dict(flow.parameters), "width": flow.width}
    return found | {"parameters_total": sum(flow.parameters.values())}


def of_recipe(recipe: Recipe, installed: Catalogue) -> dict[str, Any]:
    """What may be otherwise when a run goes on: versions of its plugins, and settings that are free to change."""
    settings = {f"run.{name}": getattr(recipe.run, name) for name in FREE}
    return {"plugins": plugin_versions(recipe, installed), "settings": settings}


def of_machine(world: World) -> dict[str, Any]:
    """The device's model, how many processes, threads of each, and versions of all that computes."""
    found: dict[str, Any] = {"device": device_name(world.device), "processes": world.size}
    found |= {"threads": torch.get_num_threads(), "python": platform.python_version(), "versions": versions()}
    commit = source_commit()
    return found | ({"commit": commit} if commit else {})


def device_name(device: torch.device) -> str:
    """The model of the GPU or CPU that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> Mapping[str, str]:
    """Versions of the packages whose arithmetic a run's numbers are."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_commit() -> str:
    """The commit of the checkout that sslzoo runs from, marked where files differ from it; empty if it is none."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    git = ["git", "-C", os.fspath(folder)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+changes" if changed.strip() else "")
