"""DeepSpeed's own Muon, given our groups: what it reads is on the parameters, and keys of ours it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
from torch import nn

from alphadecay_dist.optimizers.division import divided, head_cuts
from alphadecay_dist.optimizers.settings import MuonSettings
from alphadecay_dist.params.groups import NAMES_KEY, names_in

NS_METHOD = "standard"  # torch.optim.Muon's iteration, in bf16; DeepSpeed's default, gram, is another in fp16


def for_zero(
    model: nn.Module, groups: Sequence[dict[str, Any]], settings: MuonSettings
) -> torch.optim.Optimizer:
    """``MuonWithAuxAdam`` over our groups, for ``deepspeed.initialize(optimizer=...)`` at stages 1 to 3.

    Given as the config's optimizer it would split each group in two, and drop our keys. The momentum and the
    products are DeepSpeed's ZeRO optimizers', which look for ``use_muon`` on each parameter.
    """
    division = divided(model, groups, settings)
    cuts = head_cuts(division.weights, model, settings.heads)
    for parameter in model.parameters():
        parameter.use_muon, parameter.muon_num_heads = False, None  # type: ignore[attr-defined]
    for weight in division.weights:
        parameter = weight.parameter
        parameter.use_muon = True  # type: ignore[attr-defined]
        if weight.name in cuts:
            parameter.muon_num_heads = len(cuts[weight.name].names)  # type: ignore[attr-defined]
    muon = {"lr": settings.muon_rate, "momentum": settings.momentum, "ns_method": NS_METHOD}
    adamw = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    optimizer = MuonWithAuxAdam(
        [
            *({**muon, **_in_its_order(group), "use_muon": True} for group in division.muon),
            *({**adamw, **group, "use_muon": False} for group in division.adamw),
        ],
        adam_optimizer=torch.optim.AdamW,
        adam_optimizer_kwargs={"lr": settings.lr, "betas": settings.betas, "eps": settings.eps},
    )
    optimizer.defaults["lr"] = settings.lr
    return optimizer


def _in_its_order(group: dict[str, Any]) -> dict[str, Any]:
    """A group whose weights stand as DeepSpeed will sort them, by size; the names go with them."""
    if NAMES_KEY not in group:
        return group
    pairs = sorted(
        zip(group["params"], names_in(group), strict=True), key=lambda pair: pair[0].size(), reverse=True
    )
    return {
        **group,
        "params": [parameter for parameter, _ in pairs],
        NAMES_KEY: tuple(name for _, name in pairs),
    }
