"""Update number -> learning rate: a pure function."""

from __future__ import annotations

import math

from alphadecay_dist.training.recipe import OptimizerConfig


def learning_rate(update: int, steps: int, config: OptimizerConfig) -> float:
    """The learning rate of one update.

    Linear warm-up that reaches the peak at its last update, then cosine or linear down to
    ``min_lr_ratio`` peaks at the last update, or constant.

    Args:
        update: number of the update, from 1 on.
        steps: updates of the whole run.
        config: peak, warm-up and shape.
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    if update <= warmup:
        return config.lr * update / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (update - warmup) / max(1, steps - warmup)
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * fall)
