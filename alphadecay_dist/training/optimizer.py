"""The torch optimizer over AlphaDecay's param groups, and the learning rate of each update."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from alphadecay_dist.control.writers import choose_apply
from alphadecay_dist.decay.choices import AUTO, GROUPS, PREMULTIPLY
from alphadecay_dist.decay.policies import MATRIX_DECAY, MATRIX_RATE
from alphadecay_dist.errors import UserError
from alphadecay_dist.optimizers.registry import muon_for
from alphadecay_dist.params.groups import NAMES_KEY, param_groups
from alphadecay_dist.training.muon import MUON, muon_settings
from alphadecay_dist.training.recipe import Config, DecayConfig, OptimizerConfig

CLASSES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def pick_apply(config: Config, refusal: str | None) -> tuple[DecayConfig, str | None]:
    """Resolve how decays will be applied.

    Args:
        config: the recipe.
        refusal: why the engine does not allow premultiply; None where it does.

    Returns:
        The decay's settings without ``auto``, and a line about what ``auto`` became and why; None where it
        was not asked for.

    Raises:
        UserError: premultiply is asked for where the engine does not allow it.
    """
    if config.decay.apply == AUTO and config.decay.follow:
        reason = f"decay.follow={list(config.decay.follow)} needs a group per matrix"
        return dataclasses.replace(
            config.decay, apply=GROUPS
        ), f"decay.apply=auto: {GROUPS}, because {reason}"
    if config.decay.apply == AUTO:
        apply, reason = choose_apply(config.decay, config.optimizer.name, refusal)
        return dataclasses.replace(config.decay, apply=apply), f"decay.apply=auto: {apply}, because {reason}"
    if config.decay.apply == PREMULTIPLY and refusal is not None:
        raise UserError(f"decay.apply: found {PREMULTIPLY!r}, expected 'groups' or 'auto': {refusal}")
    return config.decay, None


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    decay: DecayConfig,
    *,
    fused: bool,
    engine: str = "ddp",
    options: Mapping[str, Any] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """Adam (L2), AdamW (decoupled), or Muon with AdamW for the rest, over AlphaDecay's param groups.

    Args:
        model: the model whose trained parameters to optimise, as the engine holds it.
        config: the optimizer's settings.
        decay: see :func:`groups_of`; and the budget for gathering weights, which is Muon's too.
        fused: use torch's fused kernels of Adam (CUDA).
        engine: by name, which holds the model, for Muon; by default weights are whole.
        options: the engine's own settings: of DeepSpeed, the config.
    """
    groups = groups_of(model, decay)
    if config.name == MUON:
        settings = muon_settings(config, fused=fused, memory_budget=decay.memory_budget)
        return muon_for(engine, options, model, groups, settings)
    return CLASSES[config.name](groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def groups_of(model: nn.Module, decay: DecayConfig) -> list[dict[str, Any]]:
    """The param groups of a run.

    Every policy gets the same groups, but for one that moves rates: its embeddings and head stand apart.

    Args:
        model: the model whose trained parameters to optimise.
        decay: the base decay, what untuned parameters get, what follows tuned ones, and how decays are
            applied.
    """
    start = decay.weight_decay if decay.row.moves == MATRIX_RATE else decay.start
    groups = param_groups(
        model,
        weight_decay=start,
        untuned=decay.untuned,
        follow=decay.follow,
        apply=decay.apply,
        matrices_apart=decay.row.moves == MATRIX_RATE,
    )
    if decay.row.moves != MATRIX_DECAY:  # no one will multiply decays in: the groups' own are enough
        for group in groups:
            if NAMES_KEY in group:
                group["weight_decay"] = start
    return groups


def learning_rate(update: int, steps: int, config: OptimizerConfig) -> float:
    """The learning rate of one update.

    Linear warm-up to the peak, reached at the warm-up's last update; then constant, or cosine or linear
    decay to ``min_lr_ratio`` times the peak, reached at the run's last update. With ``zero_first`` all of it
    comes an update later: the first has the rate 0, and the last is one step of the schedule above its end.

    Args:
        update: number of the update, from 1 on.
        steps: updates of the whole run.
        config: peak, warm-up and shape.
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    place = update - 1 if config.zero_first else update
    if place <= warmup and warmup > 0:
        return config.lr * place / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (place - warmup) / max(1, steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * fall)
