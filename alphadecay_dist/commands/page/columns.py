"""Records of a run -> columns of a page: thinned out and rounded, so that a page stays small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DIGITS = 6  # significant ones, of numbers that are drawn
Column = list[Any]


def rounded(value: Any) -> Any:
    """A number to draw; None where it is none, or not finite."""
    if not _is_finite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def thinned(records: Sequence[Mapping[str, Any]], keys: Iterable[str], most: int) -> dict[str, Any]:
    """Columns of at most so many points, each the mean of neighbouring records, at the last one's step.

    Args:
        records: with their ``step``.
        keys: the numbers that are wanted.
        most: points of a column.

    Returns:
        A column by key, ``step``, and ``every``: how many records a point stands for.
    """
    every = max(1, -(-len(records) // most))
    chunks = [records[start : start + every] for start in range(0, len(records), every)]
    columns: dict[str, Any] = {
        key: [_mean(record.get(key) for record in chunk) for chunk in chunks] for key in keys
    }
    return {"step": [chunk[-1]["step"] for chunk in chunks], **columns, "every": every}


def spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(number * (count - 1) / (most - 1)) for number in range(most)})


def _mean(values: Iterable[Any]) -> Any:
    defined = [value for value in values if _is_finite(value)]
    return rounded(math.fsum(defined) / len(defined)) if defined else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
