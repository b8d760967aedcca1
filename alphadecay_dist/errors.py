"""Errors that are told in one line, and warnings that end nothing."""

from __future__ import annotations

import contextlib
import warnings


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, found, expected and what to do.

    Commands print it without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on, through no mistake in what it was given: one line, and exit code 1."""


def warn(text: str) -> None:
    """Warn; where warnings are errors, say nothing rather than end what other ranks wait for."""
    with contextlib.suppress(Warning):
        warnings.warn(text, stacklevel=3)
