"""A run's numbers as tables: metrics.csv, eval.csv and decay.csv, a row for each record."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alphadecay_dist.files import write_atomically
from alphadecay_dist.training.outputs.tracker import KINDS, Record, history

NAMES = tuple(f"{kind}.csv" for kind in KINDS)


class CSVRun:
    """The tables of an output directory; an undefined number is an empty cell.

    They are made of the run's own files at the start, and whenever a column is new, so that they always hold
    the same. Between, each record is a line more.

    Args:
        folder: the output directory.
        every: updates between rows of metrics.csv.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._folder = folder
        self._every = every
        self._columns: dict[str, list[str]] = {}
        self._make()

    def log(self, kind: str, step: int, record: Record) -> None:
        """See :meth:`.tracker.Tracker.log`."""
        columns = self._columns.get(kind, [])
        if not record.keys() <= set(columns):
            self._make()
            return
        with (self._folder / f"{kind}.csv").open("a", encoding="utf-8", newline="") as file:
            file.write(_lines(columns, [{"step": step, **record}]))

    def go_back(self, step: int) -> None:
        """See :meth:`.tracker.Tracker.go_back`."""
        self._make()

    def close(self, exit_code: int) -> None:
        """Nothing is open."""

    def _make(self) -> None:
        """Write all anew."""
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for kind, step, record in history(self._folder, self._every):
            rows[kind].append({"step": step, **record})
        for kind, own in rows.items():
            self._columns[kind] = list(dict.fromkeys(key for row in own for key in row))
            path = self._folder / f"{kind}.csv"
            if own or path.is_file():
                header = [dict(zip(self._columns[kind], self._columns[kind], strict=True))] if own else []
                write_atomically(path, _lines(self._columns[kind], [*header, *own]))


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(row.get(key)) for key in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and not math.isfinite(value) else value
