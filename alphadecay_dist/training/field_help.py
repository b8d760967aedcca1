"""A recipe's fields as a command's help lists them: from the dataclasses and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from alphadecay_dist.training.recipe import Config

ENTRY = re.compile(r"    (\w+): (.+)")
WIDTH = 100
HEAD = """\
A recipe's fields are options too: --train.steps=10, --train.steps 10, and dashes for underscores. The value \
is YAML. Here are all, with their values where a recipe says nothing; --dry_run prints those of a run."""


def listing() -> str:
    """Every field with its default and what it means."""
    lines = [textwrap.fill(HEAD, WIDTH), ""]
    for key, value, text in described():
        lines.append(f"  --{key}={_yaml(value)}")
        lines.append(textwrap.fill(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def described() -> Iterator[tuple[str, Any, str]]:
    """Dotted key, default and description of every field of a recipe."""
    defaults = Config()
    for section in fields(defaults):
        values = getattr(defaults, section.name)
        texts = _attributes(type(values))
        for option in fields(values):
            yield f"{section.name}.{option.name}", getattr(values, option.name), texts.get(option.name, "")


def _attributes(cls: type) -> dict[str, str]:
    """The entries below ``Attributes:`` in the docstrings of a class and its bases, each on one line."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        texts |= _entries(inspect.cleandoc(base.__doc__ or ""))
    return texts


def _entries(docstring: str) -> dict[str, str]:
    """The entries below ``Attributes:``, without markup."""
    texts: dict[str, str] = {}
    name = ""
    _, _, block = docstring.partition("Attributes:\n")
    for line in block.partition("\n\n")[0].splitlines():
        entry = ENTRY.fullmatch(line)
        if entry:
            name = entry[1]
            texts[name] = entry[2]
        elif name:
            texts[name] += f" {line.strip()}"
    return {name: text.replace("``", "").strip() for name, text in texts.items()}


def _yaml(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value)
