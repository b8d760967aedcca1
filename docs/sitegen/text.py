"""Texts of programs as markdown."""

from __future__ import annotations

import html
import re


def escaped(text: str) -> str:
    """A text without what markdown would take for markup."""
    return re.sub(r"([*_\[\]|`])", r"\\\1", html.escape(text, quote=False))
