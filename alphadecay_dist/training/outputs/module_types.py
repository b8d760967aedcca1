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
    """Mean alpha and mean decay by module type, under ``alpha/q``, ``weight_decay/q`` and so on."""
    means = {}
    for kind, names in modules_by_type(refresh.modules).items():
        alphas = [a for name in names if (a := refresh.modules[name].alpha) is not None]
        if alphas:
            means[f"alpha/{kind}"] = math.fsum(alphas) / len(alphas)
        decays = [refresh.modules[name].weight_decay for name in names]
        means[f"weight_decay/{kind}"] = math.fsum(decays) / len(decays)
    return means
