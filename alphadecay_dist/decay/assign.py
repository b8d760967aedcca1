"""Metric values -> weight decays: pure functions, equal on every rank that gets equal values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ASSIGNED = "assigned"  # mapped from the module's own alpha
EQUAL = "all_equal"  # every defined alpha is the same: the base decay
KEPT = "kept"  # alpha undefined: the last decay


@dataclass(frozen=True)
class Assignment:
    """A module's decay and which case of the map gave it (ASSIGNED, EQUAL or KEPT)."""

    weight_decay: float
    case: str


def linear(
    values: Mapping[str, float | None],
    *,
    weight_decay: float,
    min_ratio: float,
    max_ratio: float,
    last: Mapping[str, float],
) -> dict[str, Assignment]:
    """Linear map of AlphaDecay (arXiv 2506.14562, section 3): a higher alpha gets a stronger decay.

    [min alpha, max alpha] over all modules goes to [min_ratio, max_ratio] times ``weight_decay``.

    Args:
        values: alpha by module; None where undefined, which leaves that module out of the range.
        weight_decay: the base decay.
        min_ratio: decay of the smallest alpha, in base decays.
        max_ratio: decay of the largest alpha, in base decays.
        last: the decay that each module has now, kept where alpha is undefined.

    Returns:
        An assignment for every module, in the order of ``values``.
    """
    defined = [value for value in values.values() if value is not None]
    low, high = min(defined, default=0.0), max(defined, default=0.0)

    def assign(name: str, value: float | None) -> Assignment:
        if value is None:
            return Assignment(last[name], KEPT)
        if high == low:
            return Assignment(weight_decay, EQUAL)
        share = (value - low) / (high - low)
        return Assignment(weight_decay * (min_ratio + share * (max_ratio - min_ratio)), ASSIGNED)

    return {name: assign(name, value) for name, value in values.items()}
