"""The trainer with losses that are not finite."""

from __future__ import annotations

import math
import os

import torch

import train
from alphadecay_dist.training.tasks.language.task import LanguageModel

MICRO_BATCHES = 2  # an update and rank


def loss_plus_nan(loss):
    return loss + math.nan  # with gradients as if nothing were wrong


def poisoned(argv, poison, updates):
    """Train; on rank 1 the first micro-batch of some updates has a loss that is spoilt."""
    original, calls = LanguageModel.loss, 0

    def spoilt(own, model, batch):
        nonlocal calls
        loss = original(own, model, batch)
        if not torch.is_grad_enabled() or os.environ["RANK"] != "1":
            return loss
        number, first = divmod(calls, MICRO_BATCHES)
        calls += 1
        return poison(loss) if number + 1 in updates and first == 0 else loss

    LanguageModel.loss = spoilt
    return train.main(argv)
