"""Paths that a command is given, looked at before anything slow is loaded or computed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alphadecay_dist.errors import UserError

PAGES = (".html", ".htm")
PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


def require_there(path: Path, expected: str, option: str = "") -> None:
    """Refuse a path at which nothing is.

    Args:
        path: of a file or a directory.
        expected: what the command takes, as in "the directory of a run".
        option: that names it, where one does.

    Raises:
        UserError: there is nothing.
    """
    if not os.path.exists(path):  # Path's raises where a name is too long
        raise UserError(f"{f'{option} {path}'.lstrip()}: no such file or directory; give {expected}")


def require_place(option: str, path: Path | None, kinds: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written.

    Args:
        option: that names it.
        path: None is fine.
        kinds: endings that it may have; all by default.

    Raises:
        UserError: its directory cannot be written to, or it ends otherwise.
    """
    if path is None:
        return
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"{option} {path}: found no directory to write to; choose another")
    if kinds and path.suffix.lower() not in kinds:
        raise UserError(f"{option} {path}: found {path.suffix!r}, expected one of {', '.join(kinds)}")
