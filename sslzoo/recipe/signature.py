"""Which keys does a part take? Its constructor's keyword-only arguments are the schema, checked by pydantic.

Bounds stand with the key: a type of `sslzoo.keys`, or as pydantic writes them, `Annotated[int, Field(ge=1, le=200)]`;
schedules take them too. `Free()` beside them says that the key may change when a run is resumed.
"""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, field_validator
from pydantic.fields import FieldInfo

from sslzoo.errors import PluginError, Problem, did_you_mean, shown
from sslzoo.keys import PartsOf
from sslzoo.recipe.schedule import Duration, Schedule, out_of_range

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LARGEST = 2**63  # what a tensor of whole numbers can hold
_MADE_OF = {
    Schedule: "a number or a schedule",
    Duration: "a duration",
    Path: "a path",
    str: "text",
    int: "a whole number",
}
_MADE_OF |= {float: "a number", bool: "true or false", type(None): "null"}


class Keys(BaseModel):
    """The keys of a section or a part: no others, numbers finite, true and false only where they are asked for."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: Any) -> Any:
        """Pydantic would read true as 1, and any number of digits."""
        key = cls.model_fields[info.field_name]
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in items) and not takes(key.annotation, bool):
            raise ValueError(f"found {shown(value)}; expected {expected(key)}")
        if any(isinstance(one, int) and abs(one) >= _LARGEST for one in items):
            raise ValueError(f"found {shown(value)}; expected {expected(key)}, and no more than 2^63")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        """A number that float32 takes for 0 or for infinity would be another one."""
        items = value if isinstance(value, list | tuple) else [value]
        fault = next((fault for one in items if isinstance(one, float) and (fault := out_of_range(one))), "")
        if fault:
            raise ValueError(f"found {shown(plain(value))}; {fault}")
        return value


@cache
def keys_of(make: Any) -> type[Keys]:
    """The keys a part takes, as a pydantic model.

    Raises:
        PluginError: a keyword-only argument has no annotation, one that cannot be read, or a name of pydantic's; one
            that has a default is not keyword-only; or the signature swallows any key.
    """
    try:
        hints = typing.get_type_hints(make.__init__, include_extras=True)
    except NameError as error:
        what = f"its constructor is annotated with {error.name}, which is not there when it runs"
        raise PluginError(f"{_home(make)}: {what}; import it outside `if TYPE_CHECKING`") from error
    except Exception as error:  # whatever the text of an annotation raises
        what = f"an annotation of its constructor cannot be read: {type(error).__name__}: {error}"
        raise PluginError(f"{_home(make)}: {what}") from error
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            raise PluginError(f"{_home(make)} takes **{name}, which would swallow misspelt keys; name the keys")
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is not parameter.empty:
            raise PluginError(f"{_home(make)}: {name} has a default, so it is meant as a key; keys stand behind a `*`")
        if parameter.kind is parameter.KEYWORD_ONLY:
            if name not in hints:
                raise PluginError(f"{_home(make)}: the key {name} has no annotation")
            if name.startswith("_") or hasattr(Keys, name):
                raise PluginError(f"{_home(make)}: no key can be called {name}, which pydantic keeps for itself")
            fields[name] = (
                _as_written(hints[name]),
                ... if parameter.default is parameter.empty else parameter.default,
            )
    return create_model(make.__name__, __base__=Keys, **fields)


def _as_written(hint: Any) -> Any:
    """A key's type as it stands in a recipe: of parts by name, their specs."""
    marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, PartsOf)]
    return typing.Annotated[dict[str, Any], marks[0]] if marks else hint


def held(make: Any, keys: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """The parts that stand in the keys of a part, right or wrong: key, name, family and spec."""
    for key, declared in keys_of(make).model_fields.items():
        for mark in (mark for mark in declared.metadata if isinstance(mark, PartsOf)):
            inner = keys.get(key)
            for name, spec in inner.items() if isinstance(inner, Mapping) else ():
                yield key, name, mark.family, spec


def _home(make: Any) -> str:
    return f"{inspect.getsourcefile(make) or make.__module__}: {make.__name__}"


def validate(
    model: type[BaseModel], keys: Mapping[str, Any], place: str, who: str, others: Collection[str] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Keys with their types put right and defaults filled in; or what is wrong with them (without lines).

    `others` are names that are taken at the same place, though not by this model.
    """
    try:
        checked = model.model_validate(dict(keys))
    except ValidationError as error:
        return {}, list(_problems(model, error, keys, place, who, others))
    dollars = [
        Problem(f"{place}.{name}", f"found {shown(value)}; environment variables stand only in paths")
        for name, value in keys.items()
        if isinstance(value, str) and "$" in value and not takes(model.model_fields[name].annotation, Path)
    ]
    return {name: getattr(checked, name) for name in model.model_fields}, dollars


def expand(value: Any) -> Any:
    """A path with ${NAME} replaced from the environment, and ~ by the home folder; other values as they are.

    Raises:
        ValueError: a variable is not set, or a person unknown; names it.
    """
    if not isinstance(value, Path):
        return value
    unset = [name for name in _VARIABLE.findall(str(value)) if name not in os.environ]
    if unset:
        raise ValueError(
            f"found {value}; the environment variable {unset[0]} is not set: export {unset[0]}=/some/folder"
        )
    try:
        return Path(_VARIABLE.sub(lambda found: os.environ[found[1]], str(value))).expanduser()
    except RuntimeError as error:
        raise ValueError(f"found {value}; {error}") from error


def expected(key: FieldInfo) -> str:
    """What a key takes, in a person's words: type and bounds."""
    return describe(key.annotation) + _bounds(key.metadata)


def describe(hint: Any) -> str:
    """A type in a person's words."""
    if hint in _MADE_OF:
        return _MADE_OF[hint]
    origin = typing.get_origin(hint)
    inner: tuple[Any, ...] = typing.get_args(hint)
    if origin is typing.Annotated:
        return describe(inner[0]) + _bounds(inner[1:])
    if origin is typing.Literal:
        *others, last = map(str, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(one) for one in inner))
    if origin is tuple and Ellipsis not in inner:
        each = list(dict.fromkeys(map(describe, inner)))
        return (
            f"{len(inner)} values, each {each[0]}" if len(each) == 1 else f"values: {'; '.join(map(describe, inner))}"
        )
    if origin in (tuple, list):
        return f"a list of {_many(describe(inner[0]))}"
    if origin is dict or origin is Mapping:
        return "a mapping"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"a mapping of {', '.join(hint.model_fields)}"
    return getattr(hint, "__name__", str(hint))


def _many(text: str) -> str:
    """`a whole number, 0 or more` -> `whole numbers, 0 or more`."""
    return re.sub(r"\ban? ([a-z ]*?[a-z])(?= or |,|$)", r"\1s", re.sub(r"^text\b", "texts", text))


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


def takes(hint: Any, wanted: type) -> bool:
    """Whether a type is the one wanted, or has room for it."""
    return names(hint, wanted) or names(hint, Any)


def names(hint: Any, wanted: Any) -> bool:
    """Whether a type is the one wanted, or is made of it."""
    return hint is wanted or any(names(one, wanted) for one in typing.get_args(hint))


def _bounds(metadata: Sequence[Any]) -> str:
    """`, from 0 to below 1`, or nothing; of pydantic's Field and of the marks it is made of."""
    marks = [mark for one in metadata for mark in (one.metadata if isinstance(one, FieldInfo) else [one])]
    parts = [mark.family for mark in marks if isinstance(mark, PartsOf)]
    if parts:
        return f" of {parts[0]} by name, each {{use: NAME, ...}}"
    found = {name: getattr(mark, name) for mark in marks for name in ("ge", "gt", "le", "lt") if hasattr(mark, name)}
    low = f"above {found['gt']}" if "gt" in found else f"{found['ge']} or more" if "ge" in found else ""
    high = f"below {found['lt']}" if "lt" in found else f"at most {found['le']}" if "le" in found else ""
    if "ge" in found and high:
        return f", from {found['ge']} to {high.removeprefix('at most ')}"
    return "".join(f", {one}" for one in (low, high) if one)


def _problems(
    model: type[BaseModel],
    error: ValidationError,
    keys: Mapping[str, Any],
    place: str,
    who: str,
    others: Collection[str],
) -> Iterator[Problem]:
    done = set()
    for one in error.errors(include_url=False):
        way, level, key, hint = _level(model, one["loc"])
        if way in done:
            continue  # one problem a key: pydantic reports every branch of a union
        done.add(way)
        names = [*level.model_fields, *(others if level is model else ())]
        takes = f"it takes: {', '.join(names) or 'no keys'}"
        if one["type"] == "extra_forbidden":
            message = f"{who} has no such key{did_you_mean(way[-1], names)}\n{takes}"
        elif one["type"] == "missing" and key is not None and len(one["loc"]) == len(way):  # else: an item of a list
            message = f"{who} needs this key: {expected(key)}\n{takes}"
        elif one["type"] == "value_error":
            message = str(one.get("ctx", {}).get("error", one["msg"]))
        else:
            found = _at(keys, way)
            near = did_you_mean(found, _words(hint)) if isinstance(found, str) else ""
            least = f", of {one.get('ctx', {})['min_length']} or more" if one["type"] == "too_short" else ""
            message = f"found {shown(found)}; expected {describe(hint) if key is None else expected(key)}{least}{near}"
        yield Problem(".".join(part for part in (place, *way) if part), message)


def _level(model: type[BaseModel], loc: Sequence[Any]) -> tuple[tuple[str, ...], type[BaseModel], Any, Any]:
    """The way to what pydantic speaks of, the model around it, its key there if it is one, and its type.

    Branches of unions and numbers of items, which pydantic names too, are left out.
    """
    way, level, key, hint = [], model, None, model
    for step in loc:
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            level, key = hint, hint.model_fields.get(str(step))
            hint = None if key is None else key.annotation
        elif typing.get_origin(hint) in (dict, Mapping):
            key, hint = None, typing.get_args(hint)[1]
        else:
            break
        way.append(str(step))
    return tuple(way), level, key, hint


def _at(keys: Any, way: Sequence[str]) -> Any:
    for name in way:
        keys = keys.get(name) if isinstance(keys, Mapping) else None
    return keys


def _words(hint: Any) -> list[str]:
    """The words that a key takes, if it takes words."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(one) for one in typing.get_args(hint)]
    return [word for one in typing.get_args(hint) for word in _words(one)]
