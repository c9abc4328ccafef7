"""Which keys does a part take? Its constructor's keyword-only arguments are the schema, checked by pydantic."""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from sslzoo.errors import PluginError, Problem, did_you_mean
from sslzoo.recipe.schedule import Duration, Schedule

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_MADE_OF = {
    Schedule: "a number or a schedule",
    Duration: "a duration",
    Path: "a path",
    str: "text",
    int: "a whole number",
}
_MADE_OF |= {float: "a number", bool: "true or false", type(None): "null"}


@cache
def keys_of(make: Any) -> type[BaseModel]:
    """The keys a part takes, as a pydantic model.

    Raises:
        PluginError: a keyword-only argument has no annotation, or the signature swallows any key.
    """
    hints = typing.get_type_hints(make.__init__, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            raise PluginError(f"{_home(make)} takes **{name}, which would swallow misspelt keys; name the keys")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if name not in hints:
                raise PluginError(f"{_home(make)}: the key {name} has no annotation")
            fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)
    return create_model(make.__name__, __config__=config, **fields)


def _home(make: Any) -> str:
    return f"{inspect.getsourcefile(make) or make.__module__}: {make.__name__}"


def validate(
    model: type[BaseModel], keys: Mapping[str, Any], place: str, who: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Keys with their types put right and defaults filled in; or what is wrong with them (without lines)."""
    try:
        checked = model.model_validate(dict(keys))
    except ValidationError as error:
        return {}, _problems(model, error, place, who)
    dollars = [
        Problem(f"{place}.{name}", f"found {value!r}; environment variables stand only in paths")
        for name, value in keys.items()
        if isinstance(value, str) and "$" in value and not _takes_path(model.model_fields[name].annotation)
    ]
    return {name: getattr(checked, name) for name in model.model_fields}, dollars


def expand(value: Any) -> Any:
    """A path with ${NAME} replaced from the environment, and ~ by the home folder; other values as they are.

    Raises:
        ValueError: a variable is not set; names it.
    """
    if not isinstance(value, Path):
        return value
    unset = [name for name in _VARIABLE.findall(str(value)) if name not in os.environ]
    if unset:
        raise ValueError(
            f"found {value}; the environment variable {unset[0]} is not set: export {unset[0]}=/some/folder"
        )
    return Path(_VARIABLE.sub(lambda found: os.environ[found[1]], str(value))).expanduser()


def describe(hint: Any) -> str:
    """A type in a person's words."""
    if hint in _MADE_OF:
        return _MADE_OF[hint]
    origin = typing.get_origin(hint)
    inner: tuple[Any, ...] = typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(inner[0])
    if origin is typing.Literal:
        *others, last = map(str, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(one) for one in inner))
    if origin is tuple and Ellipsis not in inner:
        return f"{len(inner)} values, each {describe(inner[0])}"
    if origin in (tuple, list):
        return f"a list of {describe(inner[0])}"
    if origin is dict or origin is Mapping:
        return "a mapping"
    return getattr(hint, "__name__", str(hint))


def plain(value: Any) -> Any:
    """A value as it would stand in YAML."""
    if isinstance(value, Schedule):
        return plain(value.spec)
    if isinstance(value, Duration | Path):
        return str(value)
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


def _takes_path(hint: Any) -> bool:
    return hint is Path or any(_takes_path(one) for one in typing.get_args(hint))


def _problems(model: type[BaseModel], error: ValidationError, place: str, who: str) -> list[Problem]:
    found: dict[str, Problem] = {}
    takes = f"it takes: {', '.join(model.model_fields) or 'no keys'}"
    for one in error.errors():
        name = str(one["loc"][0]) if one["loc"] else ""
        at = f"{place}.{name}" if name else place
        if name in found:
            continue  # one problem a key: pydantic reports every branch of a union
        if one["type"] == "extra_forbidden":
            message = f"{who} has no such key{did_you_mean(name, model.model_fields)}\n{takes}"
        elif one["type"] == "missing" and len(one["loc"]) == 1:
            message = f"{who} needs this key: {describe(model.model_fields[name].annotation)}\n{takes}"
        elif one["type"] == "value_error":
            message = str(one.get("ctx", {}).get("error", one["msg"]))
        else:
            wanted = describe(model.model_fields[name].annotation) if name in model.model_fields else one["msg"]
            message = f"found {one['input']!r}; expected {wanted}"
        found[name] = Problem(at, message)
    return list(found.values())
