"""The results of a table: means over seeds beside what was published, as markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alphadecay_dist.commands.cells import HOURS, SEED, Cell
from alphadecay_dist.commands.comparable import data_of, deviations, mixtures
from alphadecay_dist.commands.paired import paired
from alphadecay_dist.commands.published import Published, Table
from alphadecay_dist.commands.published_facts import facts

FORMATS = ("markdown", "csv", "json")
FINISHED = "finished"


@dataclass(frozen=True)
class Statistic:
    """Of one number over the finished runs of a row.

    Attributes:
        mean: of them.
        deviation: the sample's standard deviation; None of a single run.
        runs: how many.
    """

    mean: float
    deviation: float | None
    runs: int


@dataclass(frozen=True)
class Row:
    """Cells that differ in the seed alone.

    Attributes:
        place: the name of each other axis's value, by axis.
        numbers: ours, by name.
        published: by the name of ours.
        cells: how many.
        missing: what each cell that is not finished is instead.
    """

    place: Mapping[str, str]
    numbers: Mapping[str, Statistic]
    published: Mapping[str, Published]
    cells: int
    missing: Sequence[str]

    def difference(self, name: str) -> float | None:
        """Ours less the published number, where there are both."""
        if name in self.numbers and name in self.published:
            return self.numbers[name].mean - self.published[name].mean
        return None


def statistic(values: Sequence[float]) -> Statistic:
    """Mean and standard deviation (n - 1) of one number or more."""
    return Statistic(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
    )


def rows_of(table: Table) -> list[Row]:
    """A row for all seeds of what else tells cells apart, in the order of the cells."""
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in table.cells.values():
        rest = tuple((axis, value) for axis, value in cell.place.items() if axis != SEED)
        groups.setdefault(rest, []).append(cell)
    return [_row(dict(place), cells) for place, cells in groups.items()]


def render(table: Table, form: str) -> str:
    """The table in one of ``FORMATS``."""
    if form == "json":
        return json.dumps(tree_of(table), indent=2)
    rows = rows_of(table)
    if form == "csv":
        return _csv(rows)
    return _markdown(table.title, rows, _notes(table))


def _notes(table: Table) -> list[str]:
    cells = list(table.cells.values())
    return [*deviations(cells), *mixtures(cells), *table.notes]


def _row(place: Mapping[str, str], cells: Sequence[Cell]) -> Row:
    results = [cell.result() for cell in cells]
    values: dict[str, list[float]] = {}
    for result in results:
        for name, number in result["numbers"].items():
            values.setdefault(name, []).append(number)
    missing = [
        _missing(cell, result)
        for cell, result in zip(cells, results, strict=True)
        if result["state"] != FINISHED or not result["numbers"]
    ]
    numbers = {name: statistic(found) for name, found in values.items()}
    return Row(place, numbers, cells[0].published, len(cells), missing)


def _missing(cell: Cell, result: Mapping[str, Any]) -> str:
    """A cell without a result, in words."""
    seed = f"seed {cell.place[SEED]}: " if SEED in cell.place else ""
    if not result["step"]:
        where = ""
    elif cell.mistake() is None:
        where = f" at update {result['step']} of {cell.config().train.steps}"
    else:
        where = f" at update {result['step']}"
    reason = f" ({result['reason']})" if result.get("reason") and result["state"] == "failed" else ""
    return f"{seed}{result['state']}{where}{reason}"


def names_of(rows: Sequence[Row]) -> list[str]:
    """The numbers that the rows have, ours or published, in the order of columns."""
    there = {name for row in rows for name in (*row.numbers, *row.published)}
    known = facts()["columns"]
    others = sorted(there - {*known, HOURS})
    return [name for name in (*known, *others, HOURS) if name in there]


def _markdown(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    names = names_of(rows)
    titles = {**facts()["columns"], HOURS: "hours here"}
    compared = {name for row in rows for name in row.published}
    head = [axis.rpartition(".")[2] for axis in rows[0].place]
    for name in names:
        head += [titles.get(name, name), *(("published", "difference") if name in compared else ())]
    lines = [f"| {' | '.join([*head, 'finished', 'missing'])} |", "|" + "---|" * (len(head) + 2)]
    for row in rows:
        found = list(row.place.values())
        for name in names:
            found.append(_shown(row.numbers.get(name)))
            if name in compared:
                difference = row.difference(name)
                found.append(_shown(row.published.get(name)))
                found.append("" if difference is None else f"{difference:+.3f}")
        runs = f"{row.cells - len(row.missing)} of {row.cells}"
        lines.append(f"| {' | '.join([*found, runs, _cell_text('; '.join(row.missing))])} |")
    return "\n".join([f"## {title}", "", *lines, "", *(f"- {note}" for note in notes)]).rstrip()


def _csv(rows: Sequence[Row]) -> str:
    names = names_of(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [axis.rpartition(".")[2] for axis in rows[0].place]
    for name in names:
        head += [f"{name}{suffix}" for suffix in ("", "_std", "_published", "_published_std")]
    writer.writerow([*head, "finished", "cells", "missing"])
    for row in rows:
        found: list[Any] = list(row.place.values())
        for name in names:
            for number in (row.numbers.get(name), row.published.get(name)):
                found += [None, None] if number is None else [number.mean, number.deviation]
        writer.writerow([*found, row.cells - len(row.missing), row.cells, "; ".join(row.missing)])
    return out.getvalue().rstrip("\n")


def tree_of(table: Table) -> dict[str, Any]:
    """The results as plain data: rows, differences between methods by seed, cells, notes."""
    results = {number: cell.result() for number, cell in table.cells.items()}
    cells = [
        {
            "cell": number,
            "place": dict(cell.place),
            "folder": str(cell.folder),
            "data": data_of(cell),
            **results[number],
        }
        for number, cell in table.cells.items()
    ]
    differences = [asdict(own) for own in paired(list(table.cells.values()), list(results.values()))]
    shown = [
        {**asdict(row), "difference": {name: row.difference(name) for name in row.published}}
        for row in rows_of(table)
    ]
    tree = {"title": table.title, "rows": shown, "paired": differences, "cells": cells}
    return {**tree, "notes": _notes(table)}


def _shown(number: Statistic | Published | None) -> str:
    if number is None:
        return ""
    digits = 2 if isinstance(number, Published) and round(number.mean, 2) == number.mean else 3
    deviation = "" if number.deviation is None else f" ± {number.deviation:.{digits}f}"
    return f"{number.mean:.{digits}f}{deviation}"


def _cell_text(text: str) -> str:
    """A text that does not end a column."""
    return text.replace("|", "\\|")
