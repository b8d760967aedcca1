"""Which Muon an engine of the trainer gets. Nothing is loaded until it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alphadecay_dist.engines.registry import load
from alphadecay_dist.errors import UserError
from alphadecay_dist.optimizers.settings import MuonSettings

_WHOLE = "alphadecay_dist.optimizers.native:for_whole_weights"
MUON = {
    "ddp": _WHOLE,
    "fsdp2": "alphadecay_dist.optimizers.native:for_sharded_weights",
    "deepspeed": "alphadecay_dist.optimizers.zero:for_zero",
}


def muon_for(
    engine: str,
    options: Mapping[str, Any],
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    settings: MuonSettings,
) -> torch.optim.Optimizer:
    """Muon for the matrices and AdamW for the rest, as the engine needs it.

    Args:
        engine: its name, see :data:`alphadecay_dist.engines.registry.ENGINES`.
        options: its own settings: of DeepSpeed, the config.
        model: as the engine holds it, with its weights in their shards.
        groups: of :func:`alphadecay_dist.param_groups`.
        settings: of both.

    Raises:
        UserError: an engine that Muon is not known with.
    """
    if engine not in MUON:
        raise UserError(
            f"optimizer.name: found 'muon' with the engine {engine}, expected one of {', '.join(MUON)}"
        )
    without_zero = engine == "deepspeed" and not (options.get("zero_optimization") or {}).get("stage", 0)
    build = load(_WHOLE if without_zero else MUON[engine])
    found: torch.optim.Optimizer = build(model, groups, settings)
    return found
