"""What an expression of the source can say, with ``{}`` for what is known only when it runs.

A text is followed to where it stands: through constants, names of the function and arguments of a call, in
the same file or in the one that it is imported from.
"""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "alphadecay_dist"
UNKNOWN = "{}"
QUOTES = "shown"  # of errors.py: a value of the user's, which has no text of ours
DEEPEST = 6  # calls and names that are followed
MOST = 12  # texts of one expression; where it can say more, what varies stays unknown

Function = ast.FunctionDef
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """A file of the package: what its names stand for."""

    tree: ast.Module
    constants: Mapping[str, ast.expr] = field(default_factory=dict)
    functions: Mapping[str, Function] = field(default_factory=dict)
    imports: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where an expression stands.

    Attributes:
        module: its file.
        function: that it is in, if it is in one.
        given: texts of that function's arguments, where a call was followed.
        depth: how far it was followed.
    """

    module: Module
    function: Function | None = None
    given: Mapping[str, Texts] = field(default_factory=dict)
    depth: int = 0


@functools.cache
def module_of(path: Path) -> Module:
    """A file, read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    constants = dict(
        pair for node in assigned for target in node.targets for pair in _pairs(target, node.value)
    )
    imports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name)
        for alias in node.names
    }
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, Function)}
    return Module(tree, constants, functions, imports)


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Names and what they are given, also several in one line."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for inner, own in zip(target.elts, value.elts, strict=True):
            yield from _pairs(inner, own)


def defined(name: str, module: Module) -> tuple[Module, ast.expr | Function] | None:
    """The constant or function of a name, here or where it is imported from."""
    found = module.functions.get(name) or module.constants.get(name)
    if found is not None:
        return module, found
    if name not in module.imports:
        return None
    where, original = module.imports[name]
    path = PACKAGE.parent / f"{where.replace('.', '/')}.py"
    return defined(original, module_of(path)) if path.is_file() else None


def texts(node: ast.expr, place: Place) -> Texts:
    """All that an expression can say; ``{}`` alone where nothing of it is known."""
    found: Iterator[str]
    if isinstance(node, ast.Constant):
        return () if node.value is None else (str(node.value),)
    if isinstance(node, ast.JoinedStr):
        found = map("".join, itertools.product(*(texts(part, place) for part in node.values)))
    elif isinstance(node, ast.FormattedValue):
        return texts(node.value, place) if node.conversion == -1 else (UNKNOWN,)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found = map("".join, itertools.product(texts(node.left, place), texts(node.right, place)))
    elif isinstance(node, ast.IfExp):
        found = itertools.chain(texts(node.body, place), texts(node.orelse, place))
    elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        found = itertools.chain(*(texts(value, place) for value in node.values))
    elif isinstance(node, ast.Name):
        found = of_name(node.id, place)
    elif isinstance(node, ast.Call):
        found = of_call(node, place)
    else:
        return (UNKNOWN,)
    several = tuple(dict.fromkeys(itertools.islice(found, MOST + 1)))
    return several if several and len(several) <= MOST else plain(node)


def plain(node: ast.expr) -> Texts:
    """What stands in an expression itself; ``{}`` alone where that is nothing."""
    if isinstance(node, ast.Constant):
        return (str(node.value),)
    if isinstance(node, ast.JoinedStr):
        return ("".join(part.value if isinstance(part, ast.Constant) else UNKNOWN for part in node.values),)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return ("".join((*plain(node.left), *plain(node.right))),)
    return (UNKNOWN,)


def of_name(name: str, place: Place) -> Iterator[str]:
    """What a name stands for: an argument, what the function assigns to it, or a constant."""
    if name in place.given:
        yield from place.given[name]
        return
    if place.depth == DEEPEST:
        return
    own = ast.walk(place.function) if place.function else ()
    values = [node.value for node in own if isinstance(node, ast.Assign) and is_name(node.targets[0], name)]
    deeper = Place(place.module, place.function, place.given, place.depth + 1)
    for value in values:
        yield from texts(value, deeper)
    found = None if values else defined(name, place.module)
    if found is not None and not isinstance(found[1], Function):
        yield from texts(found[1], Place(found[0], depth=place.depth + 1))


def is_name(node: ast.expr, name: str) -> bool:
    """Whether an expression is this name."""
    return isinstance(node, ast.Name) and node.id == name


def of_call(call: ast.Call, place: Place) -> Iterator[str]:
    """What a function of the package returns for what it is given."""
    inside = entered(call, place)
    if inside is not None:
        yield from of_returns(inside)


def of_returns(place: Place) -> Iterator[str]:
    """What the function of a place returns."""
    for node in ast.walk(place.function) if place.function else ():
        if isinstance(node, ast.Return) and node.value is not None:
            yield from texts(node.value, place)


def entered(call: ast.Call, place: Place) -> Place | None:
    """Inside of the function of the package that is called by its name, or as ``self.name``."""
    if place.depth == DEEPEST or is_name(call.func, QUOTES):
        return None
    own = isinstance(call.func, ast.Attribute) and is_name(call.func.value, "self")
    name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr if own else ""
    found = defined(name, place.module)
    if found is None or not isinstance(found[1], Function):
        return None
    names = [argument.arg for argument in found[1].args.args if argument.arg != "self"]
    given = dict(zip(names, (texts(argument, place) for argument in call.args), strict=False))
    given |= {word.arg: texts(word.value, place) for word in call.keywords if word.arg}
    return Place(found[0], found[1], given, place.depth + 1)
