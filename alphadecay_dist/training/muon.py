"""What a recipe asks of Muon, and what of that cannot be; known before ranks meet."""

from __future__ import annotations

from typing import Any

from torch import nn

from alphadecay_dist.engines.registry import DEEPSPEED
from alphadecay_dist.engines.zero import config as zero_config
from alphadecay_dist.errors import UserError
from alphadecay_dist.optimizers.division import chosen, head_cuts
from alphadecay_dist.optimizers.settings import MuonSettings
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.training.recipe import Config, OptimizerConfig

MUON = "muon"


def muon_settings(
    config: OptimizerConfig, *, fused: bool = False, memory_budget: int | None = None
) -> MuonSettings:
    """What a recipe says of Muon and of AdamW beside it."""
    return MuonSettings(
        lr=config.lr,
        muon_lr=config.muon_lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr=config.adjust_lr,
        heads=config.muon_heads,
        modules=config.muon_modules,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
        memory_budget=memory_budget,
    )


def require_muon(config: Config, shapes: nn.Module, options: Any) -> None:
    """Check what a recipe asks of Muon, before ranks meet; nothing where it asks for another optimizer.

    Args:
        config: the recipe.
        shapes: the model without storage.
        options: the engine's own settings: of DeepSpeed, the config.

    Raises:
        UserError: patterns or heads that are not there, or what the engine's Muon cannot.
    """
    if config.optimizer.name != MUON:
        return
    settings = muon_settings(config.optimizer)
    try:
        head_cuts(chosen(tuned_weights(shapes), settings.modules), shapes, settings.heads)
    except UserError as error:
        raise UserError(f"optimizer.{error}") from None
    if config.engine.name == DEEPSPEED:
        refusal = zero_config.muon_refusal(options, settings, config.train.clip)
        if refusal is not None:
            raise UserError(refusal)
