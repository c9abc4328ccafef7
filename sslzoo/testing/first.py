"""What does the first check of every family ask? That a part can be made, and has what its contract names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sslzoo.contracts import lacking, members
from sslzoo.errors import UserError, did_you_mean
from sslzoo.testing.report import Check, Make, Skip, Violation, raised
from sslzoo.testing.scene import told_on_meta

_TYPES = {"ragged": bool, "needs_target": bool, "width": int, "blocks": nn.ModuleList, "outputs": Mapping}


def offers(protocol: type, build: Callable[[Make], Any], *, module: bool = False) -> Check:
    """The first check of a family: the part can be made, and has what the family's protocol names."""

    def made(make: Make) -> None:
        """It can be made with these keys, and offers what its contract asks for."""
        try:
            part = build(make)
        except (Violation, Skip, UserError):
            raise
        except Exception as error:  # a constructor with other arguments raises where it is called
            came = raised(error, make) or f"{type(error).__name__}: {error}"
            raise Violation("no error when it is made (--set key=value gives other keys)", came) from error
        kind, methods = type(part).__name__, vars(protocol)
        if module and not isinstance(part, nn.Module):
            raise Violation("a torch.nn.Module", f"a {kind}", f"class {kind}")
        if module:
            _on_meta(build, make)
        for name, written in lacking(part, protocol):
            own = [one for one in dir(part) if not one.startswith("__") and not hasattr(nn.Module, one)]
            raise Violation(f"an attribute {written}", f"none{did_you_mean(name, own)}", f"class {kind}")
        for name in members(protocol):
            wanted = _TYPES.get(name)
            if wanted is not None and not isinstance(found := getattr(part, name), wanted):
                raise Violation(f"`{name}` of type {wanted.__name__}", repr(found), f"class {kind}")
            if callable(methods.get(name)) and not callable(getattr(part, name)):
                raise Violation(f"a method `{name}`", repr(getattr(part, name)), f"class {kind}")
            if callable(methods.get(name)):
                _answers(part, kind, name, methods[name])

    return Check(made)


def _on_meta(build: Callable[[Make], Any], make: Make) -> None:
    """Whether it can be made without memory, as `sslzoo check` makes a method of any size before a run does."""
    hint = "; its constructor reads no number from tensors (.item(), .tolist(), numpy)"
    with (
        told_on_meta(make, "to be made on the meta device too", hint, "with torch.device('meta')"),
        torch.device("meta"),
    ):
        build(make)


def _answers(part: Any, kind: str, name: str, wanted: Callable[..., Any]) -> None:
    """Whether a method takes the arguments that the engine gives it."""
    own = "forward" if name == "__call__" and isinstance(part, nn.Module) else name
    given = [p for p in inspect.signature(wanted).parameters if p != "self"]
    try:
        signature = inspect.signature(getattr(part, own))
    except (TypeError, ValueError):  # none: written in C
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        came = f"{own}{signature}: {error}"
        raise Violation(f"{own} that can be called with ({', '.join(given)})", came, f"class {kind}") from error
