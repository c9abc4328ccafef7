"""The recipes that ship with sslzoo: beside the code in a checkout, inside this package in a wheel."""

from __future__ import annotations

from pathlib import Path

from sslzoo import hookimpl


@hookimpl
def sslzoo_recipes() -> Path:
    """The folder of shipped recipes."""
    packed = Path(__file__).parent / "recipes"
    return packed if packed.is_dir() else Path(__file__).parents[2] / "recipes"
