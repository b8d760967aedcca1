"""A table of runs -> a page: means and deviations of every row, paired differences, every cell."""

from __future__ import annotations

import time
from typing import Any

from alphadecay_dist.commands.cells import SEED
from alphadecay_dist.commands.page.html import page
from alphadecay_dist.commands.paired import method_axis
from alphadecay_dist.commands.published import Table
from alphadecay_dist.commands.published_facts import facts
from alphadecay_dist.commands.results import names_of, rows_of, tree_of


def table_page(table: Table) -> str:
    """The page of a table.

    Raises:
        UserError: plotly is not installed.
    """
    return page("table", table.title, table_data(table))


def table_data(table: Table) -> dict[str, Any]:
    """What the page shows: the results as ``--format json`` has them, and how to read them."""
    cells, titles = list(table.cells.values()), facts()["columns"]
    return {
        "axes": [axis for axis in cells[0].place if axis != SEED],
        "methods": method_axis(cells),
        "numbers": {name: titles.get(name, name) for name in names_of(rows_of(table))},
        **tree_of(table),
        "made": f"alphadecay table, {time.strftime('%Y-%m-%d %H:%M')}",
    }
