"""A sample's numbers by type of matrix, from its line in condition.jsonl."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

SHOWN = ("ratio", "nr", "st", "spectral_norm")


def medians_by_type(line: Mapping[str, Any]) -> dict[str, float]:
    """Medians of whatever is defined, under ``condition/ratio/q`` and so on, and ``condition/inv_p_max``."""
    by_type: dict[str, dict[str, list[float]]] = {key: {} for key in SHOWN}
    for own in line["matrices"].values():
        for key in SHOWN:
            if own[key] is not None:
                by_type[key].setdefault(own["type"], []).append(own[key])
    found = {
        f"condition/{key}/{kind}": statistics.median(numbers)
        for key, kinds in by_type.items()
        for kind, numbers in kinds.items()
    }
    if line["inv_p_max"] is not None:
        found["condition/inv_p_max"] = line["inv_p_max"]
    return found
