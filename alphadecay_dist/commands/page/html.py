"""Data -> one HTML file that needs no network: the scripts, the look, and plotly inside.

plotly.js is 4.8 MB as it comes, and 2 MB packed; the browser unpacks it itself when the page opens.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from alphadecay_dist.errors import UserError

ASSETS = files("alphadecay_dist.commands.page") / "assets"
SCRIPTS = {  # of each kind of page, in order
    "report": ("look", "figure", "runs", "depth", "spectrum", "work", "condition", "report"),
    "table": ("look", "figure", "table"),
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
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _asset("page.css"),
        "DATA": as_json(data).replace("<", "\\u003c"),  # no text of a run ends the script that holds it
        "PLOTLY": _packed_plotly(),
        "SCRIPT": scripts,
    }
    return re.sub("@([A-Z]+)@", lambda place: parts[place[1]], _asset("page.html"))


def as_json(data: dict[str, Any]) -> str:
    """The data as the page's scripts read it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").rstrip("\n")


@cache
def _packed_plotly() -> str:
    """plotly.js of the installed package, gzip in base64."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("plotly: not installed; pip install 'alphadecay-dist[plot]'") from None
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
