"""What does a recipe file say, and on which line? YAML to a tree, with the line of every place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sslzoo.errors import Problem, RecipeError


class _Loader(yaml.SafeLoader):
    """Safe YAML as people mean it: 1e-3 is a number, and only true and false are booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


@dataclass
class Text:
    """A recipe as it stands: the tree, and the line of every dotted place."""

    source: str
    tree: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, place: str) -> int | None:
        """The line of a place, or of the nearest place around it."""
        while place:
            if place in self.lines:
                return self.lines[place]
            place = place.rpartition(".")[0]
        return None


def read(path: Path, source: str) -> Text:
    """Reads a recipe file.

    Raises:
        RecipeError: it is not YAML, or a key stands twice.
    """
    try:
        node = yaml.compose(path.read_text(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise RecipeError(source, [Problem("(text)", f"not YAML: {error.problem}", line)]) from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(source, [Problem("(text)", "a recipe is a mapping of sections: name, data, views, ...", 1)])
    text, problems = Text(source, {}), []
    text.tree = _construct(node, "", text.lines, problems)
    if problems:
        raise RecipeError(source, problems)
    return text


def value(written: str) -> Any:
    """A value as it would stand in a recipe; raises yaml.YAMLError."""
    return yaml.load(written, Loader=_Loader)


def _construct(node: yaml.Node, place: str, lines: dict[str, int], problems: list[Problem]) -> Any:
    lines[place] = lines.get(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, f"{place}.{i}", lines, problems) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        loader = _Loader("")
        return loader.construct_object(node, deep=True)
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        inner = f"{place}.{key}" if place else key
        line = key_node.start_mark.line + 1
        if key in tree:
            problems.append(Problem(inner, f"stands twice; first on line {lines[inner]}", line))
        lines[inner] = line
        tree[key] = _construct(value_node, inner, lines, problems)
    return tree


def put(text: Text, assignments: Sequence[str]) -> None:
    """Changes the tree: each assignment is KEY=VALUE, KEY a dotted place, VALUE YAML.

    Raises:
        RecipeError: an assignment cannot be read, or stands inside something that is not a mapping.
    """
    problems = []
    for assignment in assignments:
        place, equals, written = assignment.partition("=")
        try:
            if not equals or not place.strip():
                raise ValueError("KEY=VALUE is wanted, such as run.steps=60")
            _assign(text, place.strip(), value(written))
        except (yaml.YAMLError, ValueError) as error:
            problems.append(Problem(f"--set {assignment}", str(error)))
    if problems:
        raise RecipeError(text.source, problems)


def _assign(text: Text, place: str, new: Any) -> None:
    *way, last = place.split(".")
    here = text.tree
    for depth, name in enumerate(way):
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise ValueError(f"{'.'.join(way[: depth + 1])} is {here!r}, not a mapping")
    here[last] = new
    if place in ("run.steps", "run.epochs"):  # they say the same thing, so one replaces the other
        here.pop("epochs" if last == "steps" else "steps", None)
    for known in [one for one in text.lines if one == place or one.startswith(place + ".")]:
        del text.lines[known]
