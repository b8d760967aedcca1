"""The API's defaults as values: a constant's name would say nothing to who reads it there."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import griffe


class Values(griffe.Extension):
    """Puts the values of constants where signatures name them."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """All signatures of the package, once it is read."""
        for module in [pkg, *_inside(pkg)]:
            for member in module.members.values():
                if not member.is_alias:
                    _put(member)


def _inside(module: griffe.Module) -> list[griffe.Module]:
    """All modules below one."""
    own = [one for one in module.members.values() if not one.is_alias and one.is_module]
    return [found for one in own for found in (one, *_inside(one))]


def _put(member: Any) -> None:
    """Put values into the signature of a function, or of all that a class has."""
    if member.is_class:
        for inner in member.members.values():
            if not inner.is_alias:
                _put(inner)
    elif member.is_function:
        for parameter in member.parameters:
            if isinstance(parameter.default, griffe.ExprName):
                parameter.default = _value(parameter.default)
    elif member.is_attribute and isinstance(member.value, griffe.ExprName):
        member.value = _value(member.value)


def _value(name: griffe.ExprName) -> griffe.Expr | str:
    """What a name stands for, if that is a text or a number of this package."""
    module, _, constant = name.canonical_path.rpartition(".")
    if not module.startswith("alphadecay_dist"):
        return name
    value = getattr(import_module(module), constant, None)
    return repr(value) if isinstance(value, str | int | float | tuple) else name
