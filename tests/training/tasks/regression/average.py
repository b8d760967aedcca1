from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.tasks.weight_copy import WeightCopy

AVERAGE = "average"


class Average(WeightCopy):
    """The moving average of the weights, with which alone the model is evaluated."""

    def __init__(self, engine: TrainEngine, kept: float) -> None:
        super().__init__(engine, AVERAGE)
        self._kept = kept

    def after_update(self, step: int) -> None:
        for value, part in zip(self.values, self.weights(), strict=True):
            value.lerp_(part.values, 1 - self._kept)

    def evaluations(self, step: int) -> Mapping[str, AbstractContextManager[None]]:
        return {"": self.in_place(step)}
