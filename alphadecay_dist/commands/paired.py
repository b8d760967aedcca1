"""Differences between the methods of a table, seed by seed: mean, deviation and 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphadecay_dist.commands.cells import SEED, Cell
from alphadecay_dist.commands.published import METHOD

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """A row less the base's row, in one number.

    Attributes:
        place: the row's, by axis.
        base: the value that the base has on the axis of methods.
        number: its name.
        differences: by seed, of the seeds of which both runs are finished.
        mean: of them.
        deviation: the sample's; None of one.
        interval: Student's 95 % interval of the mean; None of one.
    """

    place: Mapping[str, str]
    base: str
    number: str
    differences: Mapping[str, float]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def method_axis(cells: Sequence[Cell]) -> str | None:
    """The axis whose values are compared: ``method``, else the first that is not the seed."""
    axes = [axis for axis in cells[0].place if axis != SEED]
    return METHOD if METHOD in axes else next(iter(axes), None)


def paired(cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]) -> list[Paired]:
    """Every row against every other that differs from it in the method alone.

    Args:
        cells: of the table.
        results: of each, see :meth:`.Cell.result`.
    """
    axis = method_axis(cells)
    if axis is None:
        return []
    found: dict[tuple[tuple[str, str], ...], dict[str, Mapping[str, float]]] = {}
    for cell, result in zip(cells, results, strict=True):
        rest = tuple((own, value) for own, value in cell.place.items() if own != SEED)
        if result["numbers"]:
            found.setdefault(rest, {})[cell.place.get(SEED, "")] = result["numbers"]
    bases = list(dict.fromkeys(cell.place[axis] for cell in cells))
    return [
        own
        for place, runs in found.items()
        for base in bases
        if base != dict(place)[axis]
        for own in _against(dict(place), runs, base, found.get(_moved(place, axis, base), {}))
    ]


def _moved(place: tuple[tuple[str, str], ...], axis: str, base: str) -> tuple[tuple[str, str], ...]:
    return tuple((own, base if own == axis else value) for own, value in place)


def _against(
    place: Mapping[str, str],
    runs: Mapping[str, Mapping[str, float]],
    base: str,
    others: Mapping[str, Mapping[str, float]],
) -> list[Paired]:
    """One row against the base's, in each number that both have."""
    names = dict.fromkeys(name for seed in runs if seed in others for name in runs[seed])
    made = []
    for name in names:
        by_seed = {
            seed: runs[seed][name] - others[seed][name]
            for seed in runs
            if name in runs[seed] and name in others.get(seed, {})
        }
        if by_seed:
            made.append(_paired(place, base, name, by_seed))
    return made


def _paired(place: Mapping[str, str], base: str, name: str, differences: Mapping[str, float]) -> Paired:
    values = list(differences.values())
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Paired(place, base, name, differences, mean, None, None)
    deviation = statistics.stdev(values)
    half = critical(len(values) - 1) * deviation / math.sqrt(len(values))
    return Paired(place, base, name, differences, mean, deviation, (mean - half, mean + half))


def critical(freedom: int) -> float:
    """Student's t that 95 % of the distribution lie within, for 1 degree of freedom or more; by bisection."""
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), by the finite series for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, squared = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for number in range(1 + odd, freedom, 2):
        total += term
        term *= squared * number / (number + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
