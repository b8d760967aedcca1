"""Modules by their type, as plots and trackers show them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alphadecay_dist.control.refresh import Refresh


def modules_by_type(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Module names by type (q, k, v, o, gate, up, down), in the model's order.

    Where several parts of a block have modules of one name, as GPT-2's attn.c_proj and mlp.c_proj, the part
    is told too.
    """
    types: dict[str, dict[str, list[str]]] = {}  # by the last name, and by the part that holds it
    for name in names:
        *parts, last = name.split(".")
        holder = next((part for part in reversed(parts) if not part.isdigit()), "")
        types.setdefault(last.removesuffix("_proj"), {}).setdefault(holder, []).append(name)
    return {
        f"{holder}.{last}" if len(holders) > 1 else last: found
        for last, holders in types.items()
        for holder, found in holders.items()
    }


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
