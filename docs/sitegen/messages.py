"""The errors that a user can meet, read from the source, for troubleshooting.md and its test.

A message is a template: ``{...}`` stands for what is filled in when it is raised.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sitegen.text import escaped

PACKAGE = Path(__file__).parents[2] / "alphadecay_dist"
ERRORS = ("UserError", "LaunchError", "VersionError", "RunError")
ROOMS = {  # folders of the package, and what their errors are about
    "engines": "Engines and ranks",
    "params": "Which weights are tuned",
    "sharding": "Where weights lie",
    "decay": "Settings of the decay",
    "control": "AlphaDecay in a script",
    "optimizers": "Muon",
    "condition": "The spectral condition",
    "checkpoint": "Checkpoints and foreign weights",
    "training": "The trainer",
    "integrations": "Other trainers",
    "doctor": "The doctor",
    "commands": "Commands",
}


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


@functools.cache
def messages() -> tuple[Message, ...]:
    """All errors whose text stands where they are raised."""
    return tuple(message for path in sorted(PACKAGE.rglob("*.py")) for message in of_file(path))


def of_file(path: Path) -> Iterator[Message]:
    """The errors of one file, in the order of its lines."""
    inner = path.relative_to(PACKAGE)
    calls = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    for call in sorted(calls, key=lambda call: call.lineno):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        text = template(call.args[0]) if name in ERRORS and call.args else None
        if text is not None and text.replace("{}", "").strip(" :;."):
            yield Message(name, inner.parts[0], inner.as_posix(), text)


def template(node: ast.expr) -> str | None:
    """The text of an expression, with ``{}`` for what is computed; None where all of it is."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = (template(node.left), template(node.right))
        return None if None in parts else "".join(part for part in parts if part is not None)
    return None


def page() -> str:
    """All messages by room: what is said, and the end of it, which says what to do."""
    lines = []
    for room, title in ROOMS.items():
        rows = list(dict.fromkeys(message.text for message in messages() if message.room == room))
        lines += [f'??? note "{title} ({len(rows)})"', "", "    | message | what to do |", "    |---|---|"]
        lines += [f"    | {shown(found)} | {shown(advice)} |" for found, advice in map(split, rows)]
        lines.append("")
    return "\n".join(lines)


def split(text: str) -> tuple[str, str]:
    """What was found, and what to do: behind the last semicolon, or the expected value."""
    found, semicolon, advice = text.rpartition("; ")
    if semicolon:
        return found, advice
    found, expected, advice = text.partition(", expected ")
    return (found, f"expected {advice}") if expected else (text, "")


def shown(text: str) -> str:
    """A part of a message in a cell of a table."""
    return escaped(text).replace("{}", "…")
