"""The API's defaults as values: a constant's name would say nothing to who reads it there."""

from __future__ import annotations

import ast
from typing import Any

import griffe

from sitegen.texts import PACKAGE, defined, module_of

PARTS_OF_NO_VALUE = (ast.Name, ast.Call, ast.FunctionDef)


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
    """What a name stands for, if this package has it as a text or numbers; nothing is imported for it."""
    module, _, constant = name.canonical_path.rpartition(".")
    path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        return name
    found = defined(constant, module_of(path))
    while found is not None and isinstance(found[1], ast.Name):
        found = defined(found[1].id, found[0])
    if found is None or any(isinstance(node, PARTS_OF_NO_VALUE) for node in ast.walk(found[1])):
        return name
    return ast.unparse(found[1])
