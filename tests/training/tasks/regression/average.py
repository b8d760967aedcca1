from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from alphadecay_dist.engines.state import WEIGHT, EngineState, Part, Scalars
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.tasks.companion import Companion

AVERAGE = "average"


class Average(Companion):
    """The moving average of the weights, of which each rank has what it has of these."""

    def __init__(self, engine: TrainEngine, kept: float) -> None:
        super().__init__(engine)
        self._kept = kept
        self.values = [part.values.clone() for part in self.weights()]

    def weights(self) -> list[Part]:
        return [part for part in self._engine.state().parts() if part.kind == WEIGHT]

    def state(self) -> EngineState:
        return WithAverage(self._engine.state(), self)

    def after_update(self, step: int) -> None:
        for value, part in zip(self.values, self.weights(), strict=True):
            value.lerp_(part.values, 1 - self._kept)

    def evaluations(self, step: int) -> Mapping[str, AbstractContextManager[None]]:
        return {"": self._in_place(step)}

    @contextlib.contextmanager
    def _in_place(self, step: int) -> Iterator[None]:
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


class WithAverage:
    """The engine's state, and the average as one more kind of it."""

    def __init__(self, state: EngineState, average: Average) -> None:
        self._state, self._average = state, average

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._state.shapes

    def parts(self) -> list[Part]:
        pairs = zip(self._average.weights(), self._average.values, strict=True)
        averages = [dataclasses.replace(part, kind=AVERAGE, values=value) for part, value in pairs]
        return [*self._state.parts(), *averages]

    def scalars(self) -> Scalars:
        return self._state.scalars()

    def create(self, kinds: Mapping[str, Collection[str]], scalars: Scalars) -> None:
        own = {name: [kind for kind in of if kind != AVERAGE] for name, of in kinds.items()}
        self._state.create(own, scalars)

    def publish(self, step: int) -> None:
        self._state.publish(step)
