"""Data -> one HTML file that needs no network: the scripts, the look, and plotly inside.

plotly.js is 4.8 MB as it comes, and 2 MB packed; the browser unpacks it itself when the page opens. The page
may run its own script alone, and ask for nothing but new data of the server that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

from alphadecay_dist.commands.page.plotly_js import packed_plotly

ASSETS = files("alphadecay_dist.commands.page") / "assets"
SCRIPTS = {  # of each kind of page, in order
    "report": ("look", "elements", "figure", "runs", "depth", "spectrum", "work", "condition", "report"),
    "table": ("look", "elements", "figure", "table"),
}
MOST_BYTES = 5_000_000


def page(kind: str, title: str, data: dict[str, Any]) -> str:
    """A page.

    Args:
        kind: of ``SCRIPTS``.
        title: of the page.
        data: for its scripts, as plain JSON.

    Raises:
        UserError: plotly is not installed.
    """
    scripts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS[kind])
    script = f'\n"use strict";\n{scripts}\n'
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _asset("page.css"),
        "HASH": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "DATA": as_json(data).replace("<", "\\u003c"),  # no text of a run ends the script that holds it
        "PLOTLY": packed_plotly(),
        "SCRIPT": script,
    }
    return re.sub("@([A-Z]+)@", lambda place: parts[place[1]], _asset("page.html"))


def as_json(data: dict[str, Any]) -> str:
    """The data as the page's scripts read it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").rstrip("\n")
