"""Errors that are reported in one line, and warnings that end nothing."""

from __future__ import annotations

import contextlib
import reprlib
import warnings

LONGEST = 2000  # characters of a line; what is quoted in it comes from files of any size

SHOWN = 160  # characters of a value that is quoted


class _OneLineError(Exception):
    """The text of an error: printable, on one line, and not without end."""

    def __init__(self, text: str) -> None:
        printable = "".join(c if c.isprintable() else " " for c in text[: LONGEST + 1])
        super().__init__(printable if len(printable) <= LONGEST else f"{printable[:LONGEST]} ...")


class UserError(_OneLineError, ValueError):
    """A mistake in what the user gave: one line that says what, found, expected and what to do.

    Commands print it without a traceback and exit with code 2.
    """


class LaunchError(UserError):
    """A fault of how this one rank was started, which rank 0 may not know of: the rank says it itself."""


class VersionError(UserError, ImportError):
    """A package that is installed is too old; an ImportError, for it shows when a module is loaded."""


class RunError(_OneLineError, RuntimeError):
    """A run that cannot go on, through no mistake in what it was given: one line, and exit code 1."""


def warn(text: str) -> None:
    """Warn; where warnings are errors, say nothing rather than end what other ranks wait for."""
    with contextlib.suppress(Warning):
        warnings.warn(text, stacklevel=3)


def shown(value: object) -> str:
    """A value from a file as an error quotes it: short, however large, deep or entangled the value is."""
    text = _SHORT.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


class _Short(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 10_000:  # Python does not write out a number of more than 4300 digits
            return f"a number of {value.bit_length()} bits"
        return super().repr_int(value, level)


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 3, 6, 6, 6
_SHORT.maxstring = _SHORT.maxother = 120
