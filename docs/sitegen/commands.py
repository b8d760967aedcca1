"""Every command with its options, from the parsers, for reference/commands.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module

from alphadecay_dist.commands import COMMANDS
from alphadecay_dist.training.arguments import Parser
from sitegen.text import escaped


def page() -> str:
    """A section a command."""
    return "\n".join(
        line
        for name in COMMANDS
        for line in section(f"alphadecay {name}", parser_of(name), COMMANDS[name].help)
    )


def parser_of(name: str) -> Parser:
    """The parser of one command, with its arguments."""
    parser = Parser(prog=f"alphadecay {name}")
    import_module(COMMANDS[name].module).add_arguments(parser)
    return parser


def section(name: str, parser: argparse.ArgumentParser, text: str, level: str = "##") -> Iterator[str]:
    """What a command is for, how it is called, and its options; then its own commands."""
    yield from (f"{level} {name}", "", escaped(f"{text[:1].upper()}{text[1:]}."), "")
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield from ("```text", usage(parser), "```", "")
    for action in parser._actions:
        if action not in below and action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            yield from option(action)
    for action in below:
        texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for inner, own in action.choices.items():
            yield from section(f"{name} {inner}", own, texts[inner], f"{level}#")


def usage(parser: argparse.ArgumentParser) -> str:
    """How a command is called: what it cannot do without."""
    needed = [action for action in parser._actions if action.required or not action.option_strings]
    words = [
        f"{action.option_strings[0]} {taken(action)}" if action.option_strings else taken(action)
        for action in needed
    ]
    return " ".join([parser.prog, *words, "[options]"])


def option(action: argparse.Action) -> Iterator[str]:
    """An entry of a list of definitions."""
    value = "" if action.nargs == 0 or not action.option_strings else f" {taken(action)}"
    names = ", ".join(f"`{name}{value}`" for name in action.option_strings) or f"`{taken(action)}`"
    text = (action.help or "").replace("%%", "%") or ("required" if action.required else "")
    known = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
    default = (
        f"default: {action.default}" if known and action.default is not None and "default" not in text else ""
    )
    parts = "; ".join(part for part in (text, known, default) if part)
    yield from (names, f":   {escaped(parts) or '—'}", "")


def taken(action: argparse.Action) -> str:
    """The word for what an option takes."""
    word = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return (
        f"{word} ..."
        if action.nargs == "+"
        else f"[{word} ...]"
        if action.nargs == "*"
        else f"[{word}]"
        if action.nargs == "?"
        else word
    )
