"""What a task keeps beside the weights while they are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager

from alphadecay_dist.engines.state import EngineState
from alphadecay_dist.engines.training import TrainEngine


class Companion:
    """Nothing, unless a task has one of its own: a moving average of the weights, for example.

    Such a one shows its tensors beside the engine's in :meth:`state`, a part a weight of a kind of its own:
    then they are saved and loaded with the weights, on any number of ranks.

    Args:
        engine: which has the weights.
    """

    def __init__(self, engine: TrainEngine) -> None:
        self._engine = engine

    def state(self) -> EngineState:
        """What checkpoints hold: the engine's weights and optimizer, and what is kept beside them."""
        return self._engine.state()

    def after_update(self, step: int) -> None:
        """An update was applied, the ``step``-th; every rank calls it."""

    def evaluations(self, step: int) -> Mapping[str, AbstractContextManager[None]]:
        """The contexts in which the model is evaluated in turn, each with weights of its own. Collective.

        Args:
            step: updates finished.

        Returns:
            They by what stands before the names of their numbers in eval.jsonl; nothing for the first.
        """
        return {"": contextlib.nullcontext()}
