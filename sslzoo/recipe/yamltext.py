"""What does a recipe file say, and on which line? YAML to a tree, with the line of every place.

A recipe is data, read with bounds: plain scalars, lists and mappings, so many values, so deep.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sslzoo.errors import Problem, RecipeError, UserError, shown

BYTES, VALUES, DEPTH = 1 << 18, 20_000, 32  # the largest recipe; beyond them it is no recipe
_CORE = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


_NAME = re.compile(r"""[^."']+|"[^"]+"|'[^']+'""")
_PLACE = re.compile(rf"(?:{_NAME.pattern})(?:\.(?:{_NAME.pattern}))*")


class _Loader(yaml.SafeLoader):
    """Safe YAML as people mean it: 1e-3 is a number, only true and false are booleans, 2020-01-01 is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern, _first in (
    ("bool", r"^(?:true|True|false|False)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(_pattern, re.ASCII), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be something else to this loader, or to a plain YAML 1.1 one: "1e3", "08", "on"."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()), *_Loader.yaml_implicit_resolvers.get(first, ())]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


@dataclass
class Text:
    """A recipe as it stands: the tree, and the line of every dotted place; 0 for what `--set` gave."""

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

    def error(self, problems: Sequence[Problem]) -> RecipeError:
        """These problems, each with its line."""
        line = {p: self.line(p.place) if p.line is None else p.line for p in problems}
        return RecipeError(self.source, [Problem(p.place, p.message, line[p]) for p in problems])


def read(path: Path, source: str) -> Text:
    """Reads a recipe file.

    Raises:
        RecipeError: it is not YAML, not UTF-8, too large or too deep; or a key stands twice.
        UserError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from error
    try:
        node = _compose(raw)
    except _NotYaml as error:
        raise RecipeError(source, [Problem("(text)", str(error), error.line)]) from error
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(source, [Problem("(text)", "a recipe is a mapping of sections: name, data, views, ...", 1)])
    tree = _Tree()
    text = Text(source, tree.construct(node, "", 0), tree.lines)
    if tree.problems:
        raise RecipeError(source, tree.problems)
    return text


def value(written: str) -> Any:
    """A value as it would stand in a recipe.

    Raises:
        ValueError: it is not YAML, or a key stands twice.
    """
    node = _compose(written.encode(errors="surrogateescape"))
    tree = _Tree()
    found = None if node is None else tree.construct(node, "", 0)
    if tree.problems:
        raise ValueError(f"{tree.problems[0].place}: {tree.problems[0].message}".removeprefix(": "))
    return found


def written(value: Any) -> str:
    """A value as it stands in YAML on one line, such as after `--set KEY=`."""
    return dumped(value, default_flow_style=True, width=100_000).removesuffix("...\n").strip()


def dumped(tree: Any, *, default_flow_style: bool | None, width: int) -> str:
    """A tree as YAML that reads as what it was: values in the order that they stand in."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=default_flow_style, width=width)


def names(place: str) -> list[str]:
    """The names that lead to a dotted place; one in quotes may hold dots: `optim.groups."*.bias".lr`."""
    return [one.strip("\"'") for one in _NAME.findall(place)]


def assigned(assignments: Sequence[str]) -> list[tuple[str, str, Any]]:
    """What `--set KEY=VALUE` says: each as it was written, its place and its value.

    Raises:
        RecipeError: some cannot be read; tells all.
    """
    found, problems = [], []
    for assignment in assignments:
        place, equals, written = assignment.partition("=")
        try:
            if not equals or not _PLACE.fullmatch(place.strip()):
                raise ValueError("""KEY=VALUE is wanted, such as run.steps=60 or optim.groups."*.bias".lr=0""")
            found.append((assignment, place.strip(), value(written)))
        except ValueError as error:
            problems.append(Problem(f"--set {assignment}", str(error)))
    if problems:
        raise RecipeError("command line", problems)
    return found


def put(text: Text, assignments: Sequence[str]) -> None:
    """Changes the tree: each assignment is KEY=VALUE, KEY a dotted place (`names`), VALUE YAML.

    Raises:
        RecipeError: an assignment cannot be read, or stands inside something that is not a mapping.
    """
    problems = []
    for assignment, place, new in assigned(assignments):
        try:
            _assign(text, place, new)
        except ValueError as error:
            problems.append(Problem(f"--set {assignment}", str(error)))
    if problems:
        raise RecipeError(text.source, problems)


def _assign(text: Text, place: str, new: Any) -> None:
    *way, last = names(place)
    place = ".".join((*way, last))
    here = text.tree
    for depth, name in enumerate(way):
        if here.get(name) is None:  # an empty section may be filled
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            raise ValueError(f"{'.'.join(way[: depth + 1])} is {shown(here)}, not a mapping")
    here[last] = new
    if place in ("run.steps", "run.epochs") and new is not None:  # they say the same thing: one replaces the other
        here.pop("epochs" if last == "steps" else "steps", None)
    for known in [one for one in text.lines if one == place or one.startswith(place + ".")]:
        del text.lines[known]
    text.lines[place] = 0


class _NotYaml(ValueError):  # noqa: N818 - becomes a problem of the recipe
    """Text that cannot be read, and the line."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def _compose(raw: bytes) -> yaml.Node | None:
    if len(raw) > BYTES:
        raise _NotYaml(f"{len(raw):,} bytes are no recipe: at most {BYTES:,}")
    try:
        return yaml.compose(raw.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _NotYaml(f"byte {raw[error.start]:#04x} is no UTF-8: save the file as UTF-8", line) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _NotYaml(f"not YAML: {error.problem}", line) from error
    except yaml.YAMLError as error:  # letters that YAML does not know
        raise _NotYaml(f"not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise _NotYaml(f"nested more than {DEPTH} deep") from error


class _Tree:
    """Makes values of nodes; notes lines and what cannot be made."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.count = 0
        self.loader = _Loader("")

    def construct(self, node: yaml.Node, place: str, depth: int) -> Any:
        line = self.lines.setdefault(place, node.start_mark.line + 1)
        self.count += 1
        if depth > DEPTH or self.count > VALUES:
            if self.count <= VALUES + 1:
                many = (
                    f"nested more than {DEPTH} deep" if depth > DEPTH else f"more than {VALUES:,} values, with aliases"
                )
                self._refuse(place, many, line)
            return None
        if node.tag not in _CORE:
            return self._refuse(place, f"the tag {node.tag} is not read here: a recipe is plain YAML", line)
        if isinstance(node, yaml.SequenceNode):
            return [self.construct(item, f"{place}.{i}", depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, depth)
        return self._scalar(node, place, line)

    def _mapping(self, node: yaml.MappingNode, place: str, depth: int) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(place, "a list or mapping stands where a name is wanted", line)
                continue
            key = str(key_node.value)
            inner = f"{place}.{key}" if place else key
            if key_node.value == "<<":
                self._refuse(inner, "keys are not merged here: write them out", line)
                continue
            if key in tree:
                self._refuse(inner, f"stands twice; first on line {self.lines[inner]}", line)
            self.lines[inner] = line
            tree[key] = self.construct(value_node, inner, depth + 1)
        return tree

    def _scalar(self, node: yaml.Node, place: str, line: int) -> Any:
        try:
            found = self.loader.construct_object(node)
        except (ValueError, yaml.YAMLError):  # a number of 5,000 digits; !!int on a word
            return self._refuse(place, f"found {shown(node.value)}, which cannot be read as a value", line)
        if isinstance(found, str) and "\0" in found:
            return self._refuse(place, f"found {shown(found)}; a text holds no NUL", line)
        return found

    def _refuse(self, place: str, message: str, line: int) -> None:
        self.problems.append(Problem(place or "(text)", message, line))
