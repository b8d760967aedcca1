"""Modules by their type, as plots and wandb show them."""

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
    means: dict[str, float] = {}
    for kind, names in modules_by_type(refresh.modules).items():
        numbers: dict[str, list[float]] = {}
        for name in names:
            module = refresh.modules[name]
            found = {"alpha": module.alpha, "weight_decay": module.weight_decay, "lr_ratio": module.lr_ratio}
            for key, number in (found | module.metrics).items():
                if number is not None:
                    numbers.setdefault(key, []).append(number)
        means |= {f"{key}/{kind}": math.fsum(own) / len(own) for key, own in numbers.items()}
    return means
