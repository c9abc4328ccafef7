"""What does each key mean? The `Args:` of a part's or a section's docstring beside its types: one entry a key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sslzoo.keys import Free
from sslzoo.recipe import recipe, sections, signature, yamltext

SECTIONS: dict[str, type[BaseModel]] = {"optim": sections.OptimKeys, **recipe.SETTINGS}
_ENTRY = re.compile(r"    (\w+): *(.*)")


@dataclass(frozen=True)
class Entry:
    """A key for people."""

    name: str
    type: str
    needed: bool
    default: Any  # as it stands in YAML
    meaning: str
    free: bool  # whether it may change when a run is resumed

    @property
    def line(self) -> str:
        """All of it: `targets: blocks of an image. [a whole number; default 4]`."""
        default = "needed" if self.needed else f"default {yamltext.written(self.default)}"
        return f"{self.name}: {f'{self.meaning} ' * bool(self.meaning)}[{self.type}; {default}]"


def keys(thing: Any) -> list[Entry]:
    """Every key of a part, or of a section in `SECTIONS`."""
    section = isinstance(thing, type) and issubclass(thing, BaseModel)
    fields = (thing if section else signature.keys_of(thing)).model_fields
    meanings, all_free = _args(thing), thing is sections.Evaluate and recipe.in_free_section(("evaluate",))
    return [
        Entry(
            name,
            signature.expected(field),
            field.is_required(),
            None if field.is_required() else signature.plain(field.default),
            meanings.get(name, ""),
            all_free or any(isinstance(mark, Free) for mark in field.metadata),
        )
        for name, field in fields.items()
    ]


def prose(thing: Any) -> str:
    """The docstring without its `Args:`, each paragraph on one line; lists and code stay as they are."""
    return flowing(_without_args(inspect.getdoc(thing) or ""))


def flowing(doc: str) -> str:
    """A docstring, each paragraph on one line, as a terminal of any width wants it; lists and code stay as they are."""
    found = []
    for paragraph in doc.split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        plain = all(line and not line[0].isspace() and not line.startswith(("-", "*", "|", "```")) for line in lines)
        found.append(" ".join(lines) if plain else "\n".join(lines))
    return "\n\n".join(one for one in found if one)


def _without_args(doc: str) -> str:
    return re.sub(r"(?m)^Args:\n(?:(?: .*)?\n?)*", "", doc)


def _args(thing: Any) -> dict[str, str]:
    """Meanings by key: what stands behind `NAME:` in `Args:`, with the lines that go on further in."""
    found: dict[str, list[str]] = {}
    for line in _lines_of_args(inspect.getdoc(thing) or ""):
        entry = _ENTRY.fullmatch(line)
        if entry:
            found[entry[1]] = [entry[2]]
        elif found and line.strip():
            found[next(reversed(found))].append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


def _lines_of_args(doc: str) -> Iterator[str]:
    inside = False
    for line in doc.splitlines():
        inside = line == "Args:" or (inside and (not line or line[0] == " "))
        if inside and line != "Args:":
            yield line
