"""What may an author import, and what does each name do? Docstrings as text: docs/api.md and `sslzoo show Rng`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sslzoo.recipe import signature

# By the module that authors import from; in the order of the page.
NAMES = {
    "sslzoo": "Rng Mask Patches Tokens Signal Batch Group Pairing Reading Student Features Progress Schedule Duration "
    "Free PartsOf gather all_mean all_sum world_size make hookimpl Photo Grid load_encoder load_view catalogue load "
    "UserError RecipeError RunError PluginError ImageError",
    "sslzoo.keys": "Count Width Codes Classes Side GridCount Positive Epsilon NotNegative Rate BelowOne Share Fraction "
    "MlpRatio Deviation Range Aspects Areas Sigmas FractionRange ShareRange",
    "sslzoo.nn": "Block LayerNorm attention Positions sincos patchify pixels_of target_pixels key_mask mean_of "
    "laid_out splits start_normal start_xavier",
    "sslzoo.blocks": "size_of draw_size sizes unfitting indices covered chance",
}
# What has no docstring of its own.
NOTES = {
    "Grid": "tuple[int, int]: rows and columns of patches.",
    "LayerNorm": "torch.nn.LayerNorm with an eps of 1e-6.",
}
_PROPERTIES = (property, functools.cached_property)
HOME = {name: home for home, names in NAMES.items() for name in names.split()}


def describe(name: str, form: Callable[[str], str] = str) -> str:
    """One public name: how it is called, its docstring (in a `form`), its fields, its public methods and properties."""
    thing = getattr(import_module(HOME[name]), name)
    if typing.get_origin(thing) is typing.Annotated:  # a type of keys: what it takes is all there is to say
        return f"{HOME[name]}.{name}\n\n{signature.describe(thing)}\n"
    lines = [f"{HOME[name]}.{name}{_signature(thing)}", "", form(NOTES.get(name) or _doc(thing))]
    for key, note in _field_notes(thing):
        lines += ["", f"  .{key}", f"    {note}"]
    for key, member in _members(thing):
        if not isinstance(member, _PROPERTIES) and not callable(member):
            lines += ["", f"  .{key} = {member!r}"]
            continue
        called = key if isinstance(member, _PROPERTIES) else f"{key}{_signature(member)}"
        lines += ["", f"  .{called}", *(f"    {line}".rstrip() for line in form(_doc(member)).splitlines())]
    return "\n".join(lines).rstrip() + "\n"


def _members(thing: Any) -> list[tuple[str, Any]]:
    if not inspect.isclass(thing):
        return []
    found = [
        (key, value) for key, value in vars(thing).items() if not key.startswith("_") and key not in _fields(thing)
    ]
    found = [(key, getattr(value, "__func__", value)) for key, value in found]  # classmethods and staticmethods
    return [(key, value) for key, value in found if isinstance(value, property) or (callable(value) or _doc(value))]


def _fields(thing: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()


def _field_notes(thing: Any) -> list[tuple[str, str]]:
    """Fields of a dataclass with what is written beside them."""
    if not _fields(thing):
        return []
    beside = re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(thing), re.MULTILINE)
    return [(name, note) for name, note in beside if name in _fields(thing)]


def _doc(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _signature(thing: Any) -> str:
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    given = [p for p in found.parameters.values() if p.name != "self"]
    return str(found.replace(parameters=given)).replace("'", "").replace(" -> None", "")
