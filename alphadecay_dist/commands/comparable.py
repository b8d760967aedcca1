"""What keeps a table's runs from being compared, with published ones or with each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from alphadecay_dist.commands.cells import Cell
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import flat, load_config
from alphadecay_dist.training.inputs import INPUTS
from alphadecay_dist.training.tasks.registry import task_named

OF_THE_RECIPE = (
    "model.task",
    "model.name",
    "data.source",
    "data.pack",
)  # what decides results beside a cell's options


def deviations(cells: Iterable[Cell]) -> list[str]:
    """In which settings runs are not what their cells say, a line for those that differ alike.

    Such a run's results compare with no published ones.
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        path = cell.folder / "config.yaml"
        if path.is_file():
            line = _deviation(cell, path)
            if line:
                found.setdefault(line, []).append(cell.name)
    return [f"not the table's settings ({some(names)}): {line}" for line, names in found.items()]


def _deviation(cell: Cell, path: Path) -> str:
    """What a run's own config has otherwise than its cell."""
    try:
        kept = dict(flat(load_config(str(path.absolute()))))
        asked = dict(flat(replace(cell, given={}).config()))
    except UserError as error:
        return str(error)
    of_the_task = (key for key in task_named(asked["model.task"]).fixed if key.startswith("task."))
    keys = (*OF_THE_RECIPE, *of_the_task, *cell.options)
    return ", ".join(
        f"{key} {kept.get(key)}, not {asked[key]}" for key in keys if kept.get(key) != asked[key]
    )


def data_of(cell: Cell) -> str | None:
    """A digest of the data and the tokenizer that a run has read, in 16 digits; None of one not begun."""
    path = cell.folder / INPUTS
    if not path.is_file():
        return None
    try:
        inputs = json.loads(path.read_text(encoding="utf-8"))
        read = [inputs["tokenizer"], inputs["revision"], inputs["data"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}), expected what alphadecay train writes; remove it"
        ) from None
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()[:16]


def mixtures(cells: Iterable[Cell]) -> list[str]:
    """Which runs read other data than their neighbours under the same names, a line for each such name.

    Files change between runs: a corpus is fetched anew, or a newer version of it is prepared.
    """
    asked: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell in cells:
        found = data_of(cell)
        if found is not None and cell.mistake() is None:
            config = cell.config()
            name = config.data.prepared or config.data.source
            settings = repr((config.model, config.tokenizer, config.data))
            asked.setdefault((name, settings), {}).setdefault(found, []).append(cell.name)
    return [
        f"not the same data under the name {name}, so compare within each alone: "
        + "; ".join(f"{digest} ({some(names)})" for digest, names in readers.items())
        for (name, _), readers in asked.items()
        if len(readers) > 1
    ]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
