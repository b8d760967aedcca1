"""The moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch.optim.swa_utils import get_ema_multi_avg_fn

from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.tasks.weight_copy import WeightCopy

EMA = "ema"  # its kind in checkpoints; and before the names of its numbers


class MovingAverage(WeightCopy):
    """ema = kept ema + (1 - kept) weights after each update, in fp32, from the initial weights on.

    Args:
        engine: which has the weights.
        kept: how much of it stays.
    """

    def __init__(self, engine: TrainEngine, kept: float) -> None:
        super().__init__(engine, EMA)
        self._update = get_ema_multi_avg_fn(kept)

    def after_update(self, step: int) -> None:
        """Take the new weights in."""
        if self.values:
            self._update(self.values, [part.values for part in self.weights()], 0)

    def evaluations(self, step: int) -> Mapping[str, AbstractContextManager[None]]:
        """The weights, and the average."""
        return {**super().evaluations(step), f"{EMA}_": self.in_place(step)}
