"""The torch optimizer over AlphaDecay's param groups."""

from __future__ import annotations

import torch
from torch import nn

from alphadecay_dist.sharding.groups import param_groups
from alphadecay_dist.training.recipe import DecayConfig, OptimizerConfig

CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, decay: DecayConfig, *, fused: bool
) -> torch.optim.Optimizer:
    """Adam (L2) or AdamW (decoupled) with a group a tuned matrix; every policy gets the same groups.

    Args:
        model: the model whose trained parameters to optimise.
        config: the optimizer's settings.
        decay: the base decay and what untuned parameters get.
        fused: use torch's fused kernels (CUDA).
    """
    groups = param_groups(model, weight_decay=decay.weight_decay, untuned=decay.untuned)
    return CLASSES[config.name](groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
