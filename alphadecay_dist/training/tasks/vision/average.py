"""The moving average of the weights, sharded as they are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from alphadecay_dist.engines.state import WEIGHT, EngineState, Part, Scalars
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.tasks.companion import Companion

EMA = "ema"  # its kind in checkpoints; and before the names of its numbers


class MovingAverage(Companion):
    """ema = kept ema + (1 - kept) weights after each update, in fp32, from the initial weights on.

    Args:
        engine: which has the weights.
        kept: how much of it stays.
    """

    def __init__(self, engine: TrainEngine, kept: float) -> None:
        super().__init__(engine)
        self._update = get_ema_multi_avg_fn(kept)
        self.values = [part.values.clone() for part in self.weights()]

    def weights(self) -> list[Part]:
        """This rank's parts of the weights."""
        return [part for part in self._engine.state().parts() if part.kind == WEIGHT]

    def state(self) -> EngineState:
        """The engine's, and the average."""
        return _WithAverage(self._engine.state(), self)

    def after_update(self, step: int) -> None:
        """Take the new weights in."""
        if self.values:
            self._update(self.values, [part.values for part in self.weights()], 0)

    def evaluations(self, step: int) -> Mapping[str, AbstractContextManager[None]]:
        """The weights, and the average."""
        return {**super().evaluations(step), f"{EMA}_": self._in_place(step)}

    @contextlib.contextmanager
    def _in_place(self, step: int) -> Iterator[None]:
        """The model computes with the average, and then with its weights again."""
        trained = [part.values.clone() for part in self.weights()]
        self._put(self.values, step)
        try:
            yield
        finally:
            self._put(trained, step)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor], step: int) -> None:
        for value, part in zip(values, self.weights(), strict=True):
            part.values.copy_(value)
        self._engine.state().publish(step)


class _WithAverage:
    """The engine's state, and the average as one more kind of it."""

    def __init__(self, state: EngineState, average: MovingAverage) -> None:
        self._state, self._average = state, average

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._state.shapes

    def parts(self) -> list[Part]:
        pairs = zip(self._average.weights(), self._average.values, strict=True)
        averages = [dataclasses.replace(part, kind=EMA, values=value) for part, value in pairs]
        return [*self._state.parts(), *averages]

    def scalars(self) -> Scalars:
        return self._state.scalars()

    def create(self, kinds: Mapping[str, Collection[str]], scalars: Scalars) -> None:
        own = {name: [kind for kind in of if kind != EMA] for name, of in kinds.items()}
        self._state.create(own, scalars)

    def publish(self, step: int) -> None:
        self._state.publish(step)
