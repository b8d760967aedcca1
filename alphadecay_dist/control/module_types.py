"""Modules by their type, as plots and trackers show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alphadecay_dist.control.refresh import Refresh


def modules_by_type(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Module names by type (q, k, v, o, gate, up, down), in the model's order."""
    types: dict[str, list[str]] = {}
    for name in names:
        types.setdefault(name.rsplit(".", 1)[-1].removesuffix("_proj"), []).append(name)
    return types


def means_by_type(refresh: Refresh) -> dict[str, float]:
    """Means by module type of whatever is defined, under ``alpha/q``, ``weight_decay/q`` and so on."""
    return means_in_line(refresh.as_dict())


def means_in_line(line: Mapping[str, Any]) -> dict[str, float]:
    """The same of a refresh's line in decay.jsonl."""
    means: dict[str, float] = {}
    for kind, names in modules_by_type(line["modules"]).items():
        numbers: dict[str, list[float]] = {}
        for name in names:
            module = line["modules"][name]
            found = {key: module.get(key) for key in ("alpha", "weight_decay", "lr_ratio")}
            for key, number in (found | module.get("metrics", {})).items():
                if number is not None:
                    numbers.setdefault(key, []).append(number)
        means |= {f"{key}/{kind}": math.fsum(own) / len(own) for key, own in numbers.items()}
    return means
