"""Lines of decay.jsonl and spectra.jsonl -> what a page shows of refreshes, modules and spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alphadecay_dist.commands.page.columns import rounded, spread
from alphadecay_dist.control.module_types import modules_by_type
from alphadecay_dist.control.refresh import WRITTEN

MOST_UNDEFINED = 50  # that are named
QUANTITIES = ("alpha", "value", "weight_decay", "lr_ratio")  # of a module, that are drawn where there are any
Line = Mapping[str, Any]


def refresh_data(lines: Sequence[Line], most: int) -> dict[str, Any] | None:
    """Refreshes as columns.

    Args:
        lines: of decay.jsonl.
        most: refreshes that are kept, evenly spread.

    Returns:
        None without a refresh. Else a number a refresh (``step``, ``written_at``, ``seconds``); ``bytes``, a
        list by rank each; ``modules``, their name, type and depth; and by quantity ``numbers``, a row a
        refresh with a number a module. ``status`` and ``owner`` are like these, a status by its place in
        ``statuses``. Of all lines, kept or not: ``of``, how many; ``seconds_in_all``; ``undefined_ones``, see
        :func:`_undefined_ones`, and ``undefined_pairs``, how many there are of these.
    """
    if not lines:
        return None
    ones = _undefined_ones(lines)
    kept = [lines[place] for place in spread(len(lines), most)]
    names = list(lines[-1]["modules"])
    modules = [[line["modules"].get(name, {}) for name in names] for line in kept]
    statuses = sorted(
        {module.get("status", "unknown") for row in modules for module in row}, key=_defined_first
    )
    place = {status: number for number, status in enumerate(statuses)}
    numbers = {
        quantity: [[rounded(module.get(quantity)) for module in row] for row in modules]
        for quantity in QUANTITIES
    }
    return {
        "step": [line["step"] for line in kept],
        "written_at": [line.get("written_at", line["step"]) for line in kept],
        "seconds": [rounded(line.get("seconds")) for line in kept],
        "bytes": [line.get("bytes_received", []) for line in kept],
        "of": len(lines),
        "seconds_in_all": rounded(math.fsum(line.get("seconds") or 0 for line in lines)),
        "undefined_ones": ones[:MOST_UNDEFINED],
        "undefined_pairs": len(ones),
        "modules": _modules(names),
        "numbers": {key: rows for key, rows in numbers.items() if _any(rows)},
        "statuses": statuses,
        "defined": [status in WRITTEN for status in statuses],
        "status": [[place[module.get("status", "unknown")] for module in row] for row in modules],
        "owner": [[module.get("owner") for module in row] for row in modules],
    }


def spectra_data(lines: Sequence[Line], most: int) -> dict[str, Any] | None:
    """Histograms of spectra by module, one for each ``step``; None where none were kept."""
    if not lines:
        return None
    kept = [lines[place] for place in spread(len(lines), most)]
    names = list(dict.fromkeys(name for line in kept for name in line["modules"]))
    return {
        "step": [line["step"] for line in kept],
        "of": len(lines),
        "modules": {name: [_rounded(line["modules"].get(name)) for line in kept] for name in names},
    }


def _modules(names: Sequence[str]) -> list[dict[str, Any]]:
    types = {name: kind for kind, own in modules_by_type(dict.fromkeys(names)).items() for name in own}
    return [{"name": name, "type": types[name], "depth": _depth(name)} for name in names]


def _undefined_ones(lines: Sequence[Line]) -> list[tuple[str, str, int, int, int]]:
    """Module, status, at how many refreshes, first and last step; the most frequent first."""
    steps: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        for name, module in line["modules"].items():
            status = module.get("status", "unknown")
            if status not in WRITTEN:
                steps.setdefault((name, status), []).append(line["step"])
    found = [(*key, len(own), own[0], own[-1]) for key, own in steps.items()]
    return sorted(found, key=lambda one: -one[2])


def _depth(name: str) -> int:
    """The number of the block that a module is in."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _rounded(histogram: Line | None) -> dict[str, Any] | None:
    if histogram is None:
        return None
    return {key: value if key == "counts" else rounded(value) for key, value in histogram.items()}


def _defined_first(status: str) -> tuple[bool, str]:
    return status not in WRITTEN, status


def _any(rows: Sequence[Sequence[Any]]) -> bool:
    return any(number is not None for row in rows for number in row)
