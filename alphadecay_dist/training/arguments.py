"""Command lines as users write them: dashes or underscores, ``=`` or spaces; errors of one line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import check_fields, flat
from alphadecay_dist.training.recipe import Config

VALUES = dict(flat(Config()))
TRUTHS = {"true", "false", "yes", "no", "on", "off"}
NUMBER = re.compile(r"-[\d.]")

# What other trainers call it.
ELSEWHERE = {
    "batch_size": ("train.global_batch", "train.micro_batch"),
    "data": ("data.source",),
    "dataset": ("data.source",),
    "learning_rate": ("optimizer.lr",),
    "max_steps": ("train.steps",),
    "model": ("model.name",),
    "optimizer": ("optimizer.name",),
    "tokenizer": ("tokenizer.model",),
    "wd": ("decay.weight_decay",),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without its usage before them."""

    def error(self, message: str) -> NoReturn:
        """What argparse found, as an error of the user's.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; see {self.prog} --help")

    def refuse(self, rest: Sequence[str]) -> list[str]:
        """Nothing is to be left over by a command that has no recipe's fields.

        Raises:
            UserError: there is something.
        """
        if rest:
            raise self._unknown(rest[0], {name: [name] for name in self._names()})
        return []

    def fields_of(self, rest: Sequence[str]) -> list[str]:
        """A recipe's fields of what was left over, ``section.key=value`` each.

        Raises:
            UserError: something else is among it, or a field that no recipe has, or a value of another type.
        """
        known = {name: [name] for name in self._names()}
        for key in VALUES:
            known.setdefault(key.partition(".")[2], []).append(key)
        for option in rest:
            if not option.startswith("--") or "." not in option.partition("=")[0]:
                raise self._unknown(option, known | {name: list(keys) for name, keys in ELSEWHERE.items()})
        fields = [option.removeprefix("--") for option in rest]
        check_fields(fields)
        return fields

    def _names(self) -> Iterator[str]:
        """The options of this parser that have a long name, without dashes before it."""
        return (name[2:] for name in self._option_string_actions if name.startswith("--"))

    def _unknown(self, option: str, known: dict[str, list[str]]) -> UserError:
        """The error for what nobody knows.

        Args:
            option: as it was given.
            known: what a name may stand for.
        """
        if not option.startswith("-"):
            return UserError(f"{option!r}: belongs to no option; see {self.prog} --help")
        name = option.lstrip("-").partition("=")[0]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        meant = " or ".join(f"--{key}" for key in known[close[0]]) if close else ""
        hint = f"did you mean {meant}? see" if meant else "see"
        return UserError(f"{option!r}: unknown option; {hint} {self.prog} --help")


def normalized(argv: Sequence[str]) -> list[str]:
    """A command line with underscores in its options' names, and ``=`` behind a recipe's fields.

    Without ``=`` a switch (a field that is true or false) takes the next word only where that is one of the
    two; any other field takes the next word unless that is an option.
    """
    words = iter(_underscored(argv))
    found = []
    held: str | None = None  # a field that may take the next word
    for word in words:
        if held is not None:
            takes = _takes(held, word)
            found.append(f"{held}={word}" if takes else held)
            held = None
            if takes:
                continue
        if word.startswith("--") and "." in word and "=" not in word:
            held = word
        else:
            found.append(word)
    return found if held is None else [*found, held]


def _takes(field: str, word: str) -> bool:
    """Whether a field that was given without ``=`` takes the next word for its value."""
    if isinstance(VALUES.get(field[2:]), bool):
        return word.lower() in TRUTHS
    return not word.startswith("-") or NUMBER.match(word) is not None


def _underscored(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        name, separator, value = word.partition("=")
        is_option = name.startswith("--") and len(name) > 2
        yield f"--{name[2:].replace('-', '_')}{separator}{value}" if is_option else word
