"""The errors that a user can meet, read from the source, for troubleshooting.md and its test.

A message is a template: ``{}`` stands for what is filled in when it is raised.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sitegen.advice import from_rules
from sitegen.text import escaped
from sitegen.texts import (
    PACKAGE,
    Function,
    Place,
    Texts,
    entered,
    module_of,
    of_returns,
    plain,
    texts,
)

# Lines that end a program, what a script sees, and what becomes one of these further up.
ERRORS = {
    *("UserError", "LaunchError", "VersionError", "RunError", "OtherFormatError", "UnservedError"),
    *("RankLostError", "Mistake", "ValueError", "TypeError", "RuntimeError", "ArgumentTypeError"),
}
REFUSAL = "_refusal"  # ends the name of a public function that returns an error's text to whoever raises it
COMPARED = "require_equal"  # of collectives: what differs, the lines, what to do
SLURM = PACKAGE.parent / "slurm"
ROOMS = {  # folders of the package, and what their errors are about
    "training": "The trainer",
    "engines": "Engines and ranks",
    "control": "AlphaDecay in a script",
    "params": "Which weights are tuned",
    "decay": "Settings of the decay",
    "sharding": "Where weights lie",
    "spectral": "Spectra",
    "optimizers": "Muon",
    "condition": "The spectral condition",
    "checkpoint": "Checkpoints and foreign weights",
    "integrations": "Other trainers",
    "doctor": "The doctor",
    "commands": "Commands",
    "slurm": "SLURM",
    "json_fields.py": "Values in files",
}
BLANK = " .:;{}"  # what a text has that says nothing
PAGE = Path(__file__).parents[1] / "troubleshooting.md"
ROW = re.compile(r"^\| `(.+?)` \| (.+) \|$", re.MULTILINE)  # what stands first in a row is a message
ENDS = re.compile(  # where what was found ends, and what to do begins
    r"; (?=[^;]*$)|[,:;] (?=expected )|"
    r": (?=(?:begin with|build|call|correct|give|look|make|name the|pip install|put|raise vocab_size|"
    r"redistribute|remove|set|take|use|wrap|write)\b)"
)


@dataclass(frozen=True)
class Message:
    """An error as the source has it.

    Attributes:
        kind: the class.
        room: the folder of the package that raises it.
        file: its path in the package.
        text: what was found and expected, with ``{}`` for what is filled in.
    """

    kind: str
    room: str
    file: str
    text: str

    @property
    def known(self) -> bool:
        """Whether it has words of its own; else it passes on what another says."""
        return bool(self.text.strip(BLANK))


@functools.cache
def messages() -> tuple[Message, ...]:
    """All errors that have words of their own."""
    return tuple(message for message in raised() if message.known)


@functools.cache
def raised() -> tuple[Message, ...]:
    """All errors, with those that pass on what another says."""
    paths = (*sorted(PACKAGE.rglob("*.py")), *sorted(SLURM.glob("*.py")))
    return tuple(message for path in paths for message in of_file(path))


def of_file(path: Path) -> Iterator[Message]:
    """The errors of one file, in the order of its lines."""
    inner = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else Path("slurm", path.name)
    module = module_of(path)
    found = list(calls(module.tree, Place(module)))
    for call, place in sorted(found, key=lambda item: item[0].lineno):
        for kind, text in of_call(call, place):
            yield Message(kind, inner.parts[0], inner.as_posix(), text)
    for function in module.functions.values():
        if function.name.endswith(REFUSAL) and not function.name.startswith("_"):
            for text in of_returns(Place(module, function)):
                yield Message("UserError", inner.parts[0], inner.as_posix(), text)


def calls(node: ast.AST, place: Place) -> Iterator[tuple[ast.Call, Place]]:
    """All calls with the functions that they are in; those of makers of errors are read where called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            if not makes(child):
                yield from calls(child, Place(place.module, child))
            continue
        if isinstance(child, ast.Call):
            yield child, place
        yield from calls(child, place)


def makes(function: Function) -> bool:
    """Whether a function returns an error, for others to raise."""
    return function.returns is not None and ast.unparse(function.returns) in ERRORS


def of_call(call: ast.Call, place: Place) -> Iterator[tuple[str, str]]:
    """The classes and texts of the errors that a call makes."""
    kind = kind_of(call.func, place)
    if kind and call.args:
        yield from ((kind, text) for text in said(call.args[0], place))
    elif isinstance(call.func, ast.Attribute) and call.func.attr == COMPARED:
        what, _, advice = (texts(argument, place) for argument in call.args[:3])
        yield from (("UserError", f"{one}: {{}}; {other}") for one, other in itertools.product(what, advice))
    else:
        inside = entered(call, place)
        if inside is not None and inside.function is not None and makes(inside.function):
            for node in ast.walk(inside.function):
                if isinstance(node, ast.Call) and kind_of(node.func, inside):
                    yield from of_call(node, inside)


def kind_of(node: ast.expr, place: Place) -> str | None:
    """The class of an error that is called, which the function may have chosen."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name in ERRORS:
        return name
    chosen = (
        inner.id
        for own in ast.walk(place.function or ast.Module([], []))
        if isinstance(own, ast.Assign) and ast.unparse(own.targets[0]) == name
        for inner in ast.walk(own.value)
        if isinstance(inner, ast.Name)
    )
    return next((one for one in chosen if one in ERRORS), None)


def said(node: ast.expr, place: Place) -> Texts:
    """The texts of an error: as they stand where that says what to do, else with names followed."""
    (own,) = plain(node)
    if split(own)[1].strip(BLANK) and not place.given:
        return (own,)
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    cuts = [cut for cut, part in enumerate(parts, 1) if isinstance(part, ast.Constant) and "; " in part.value]
    (before,) = plain(ast.JoinedStr(parts[: cuts[-1]])) if cuts else ("",)
    if not before.strip(BLANK) or place.given:
        return texts(node, place)
    return tuple(before + end for end in texts(ast.JoinedStr(parts[cuts[-1] :]), place))


@functools.cache
def explained() -> tuple[tuple[str, str], ...]:
    """The beginnings of messages that troubleshooting.md explains, and what it says of them."""
    return tuple(ROW.findall(PAGE.read_text(encoding="utf-8")))


def dotted(text: str) -> str:
    """A template as the page writes it."""
    return re.sub(r"(\{\})+", "...", text)


def split(text: str) -> tuple[str, str]:
    """What was found, and what to do, as the message itself says it."""
    ends = list(ENDS.finditer(text))
    return (text[: ends[-1].start()], text[ends[-1].end() :]) if ends else (text, "")


def cells(text: str) -> tuple[str, str]:
    """A message's two cells: what is said, and what to do, which another may have to say."""
    found, advice = split(text)
    if advice.strip(BLANK):
        return escaped(found).replace("{}", "…"), escaped(advice).replace("{}", "…")
    above = next((do for row, do in explained() if dotted(text).startswith(row)), None)
    return escaped(text).replace("{}", "…"), above or from_rules(dotted(text)) or ""


def page() -> str:
    """All messages by room: what is said, and what to do."""
    lines = []
    for room, title in ROOMS.items():
        rows = list(dict.fromkeys(message.text for message in messages() if message.room == room))
        lines += [f'??? note "{title} ({len(rows)})"', "", "    | message | what to do |", "    |---|---|"]
        lines += [f"    | {found} | {advice} |" for found, advice in map(cells, rows)]
        lines.append("")
    return "\n".join(lines)
