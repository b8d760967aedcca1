"""Lines of condition.jsonl, the optimizer's telemetry -> curves by module type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphadecay_dist.commands.page.columns import thinned

CONDITION = "condition.jsonl"  # a line a measurement: numbers of each matrix
NUMBERS = ("nr", "nr_over_rank", "st", "ratio", "grad_norm", "stable_rank", "spectral_norm")


def condition_data(lines: Sequence[Mapping[str, Any]], points: int) -> dict[str, Any] | None:
    """Means over the matrices of each type, of whatever was measured; None without telemetry.

    Returns:
        ``types`` by name, each with the columns of :func:`thinned`; and ``numbers``, those that there are.
    """
    if not lines:
        return None
    matrices = {name: own for line in lines for name, own in line["matrices"].items()}
    types: dict[str, list[str]] = {}
    for name, own in matrices.items():
        types.setdefault(own.get("type") or "all", []).append(name)
    curves = {
        kind: thinned([_means(line, names) for line in lines], NUMBERS, points)
        for kind, names in types.items()
    }
    there = [
        number for number in NUMBERS if any(v is not None for own in curves.values() for v in own[number])
    ]
    return {"types": curves, "numbers": there}


def _means(line: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Means over these matrices, of those that are defined."""
    found: dict[str, Any] = {"step": line["step"]}
    for number in NUMBERS:
        values = [line["matrices"].get(name, {}).get(number) for name in names]
        defined = [value for value in values if isinstance(value, int | float)]
        found[number] = sum(defined) / len(defined) if defined else None
    return found
