"""The torch optimizer over AlphaDecay's param groups."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from alphadecay_dist.control.writers import choose_apply
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.choices import AUTO, PREMULTIPLY
from alphadecay_dist.params.groups import NAMES_KEY, param_groups
from alphadecay_dist.training.recipe import Config, DecayConfig, OptimizerConfig

CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def pick_apply(config: Config, refusal: str | None) -> tuple[DecayConfig, str | None]:
    """How decays will be applied.

    Args:
        config: the recipe.
        refusal: why the engine cannot be premultiplied on; None where it can.

    Returns:
        The decay's settings without ``auto``, and what was picked for it and why, if it was asked.

    Raises:
        UserError: premultiply is asked for where the engine does not allow it.
    """
    if config.decay.apply == AUTO:
        apply, reason = choose_apply(config.optimizer.name, refusal)
        return dataclasses.replace(config.decay, apply=apply), f"decay.apply=auto: {apply}, because {reason}"
    if config.decay.apply == PREMULTIPLY and refusal is not None:
        raise UserError(f"decay.apply: found {PREMULTIPLY!r}, expected 'groups' or 'auto': {refusal}")
    return config.decay, None


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, decay: DecayConfig, *, fused: bool
) -> torch.optim.Optimizer:
    """Adam (L2) or AdamW (decoupled) with a group a tuned matrix, or two; every policy gets the same groups.

    Args:
        model: the model whose trained parameters to optimise.
        config: the optimizer's settings.
        decay: the base decay, what untuned parameters get, and how decays are applied.
        fused: use torch's fused kernels (CUDA).
    """
    groups = param_groups(model, weight_decay=decay.weight_decay, untuned=decay.untuned, apply=decay.apply)
    if decay.policy == "uniform":  # nobody will multiply decays in: the groups' own are enough
        for group in groups:
            if NAMES_KEY in group:
                group["weight_decay"] = decay.weight_decay
    return CLASSES[config.name](groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
