"""A page of runs, in the detail that keeps it small."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alphadecay_dist.commands.page.html import MOST_BYTES, as_json, page
from alphadecay_dist.commands.page.run_data import Detail, runs_data
from alphadecay_dist.errors import UserError

MOST_DATA = 2_500_000  # bytes: with plotly, packed, the page stays below MOST_BYTES
TITLE = "AlphaDecay"


def report_page(folders: Sequence[Path], token: str | None = None) -> str:
    """The page of some runs.

    Args:
        folders: their output directories.
        token: of a server that the page asks for new data; None of a page that stays as it is.

    Raises:
        UserError: nothing is to be drawn, or so many runs that the page would be too large.
    """
    data = report_data(folders)
    title = f"{TITLE}: {', '.join(run['name'] for run in data['runs'][:3])}"
    more = len(data["runs"]) - 3
    text = page("report", title + (f" and {more} more" if more > 0 else ""), {**data, "token": token})
    if len(text.encode()) > MOST_BYTES:
        raise UserError(f"report: found a page of {len(text)} bytes, expected 5 MB; give fewer runs")
    return text


def report_data(folders: Sequence[Path]) -> dict[str, Any]:
    """The data of that page; refreshes and points are left out, evenly, where there are too many.

    Raises:
        UserError: see :func:`report_page`.
    """
    detail = Detail()
    while True:
        data = runs_data(folders, detail)
        if len(as_json(data)) <= MOST_DATA or detail.spectra <= 2:
            break
        detail = detail.halved()
    return {**data, "made": f"alphadecay report, {time.strftime('%Y-%m-%d %H:%M')}"}
