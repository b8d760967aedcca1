"""A second set of weights beside those that are trained, sharded as they are: such as a moving average."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from alphadecay_dist.engines.state import WEIGHT, EngineState, Part, Scalars
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.tasks.companion import Companion


class WeightCopy(Companion):
    """Values that begin as the weights, kept on each rank by the parts that it has of these.

    They are saved and loaded with the weights, on any number of ranks. How they change, and when the model
    is evaluated with them, is a subclass's.

    Args:
        engine: which has the weights.
        kind: what they are called in checkpoints.

    Attributes:
        values: one for each of this rank's parts of the weights, of its shape and dtype.
    """

    def __init__(self, engine: TrainEngine, kind: str) -> None:
        super().__init__(engine)
        self._kind = kind
        self.values = [part.values.clone() for part in self.weights()]

    def weights(self) -> list[Part]:
        """This rank's parts of the weights."""
        return [part for part in self._engine.state().parts() if part.kind == WEIGHT]

    def state(self) -> EngineState:
        """The engine's, and the copy."""
        return _WithCopy(self._engine.state(), self._kind, self.values)

    @contextlib.contextmanager
    def in_place(self, step: int) -> Iterator[None]:
        """The model computes with the copy, and then with its weights again.

        Args:
            step: updates finished.
        """
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


class _WithCopy:
    """An engine's state, and the copy as one more kind of it."""

    def __init__(self, state: EngineState, kind: str, values: Sequence[Tensor]) -> None:
        self._state, self._kind, self._values = state, kind, values

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._state.shapes

    def parts(self) -> list[Part]:
        own = self._state.parts()
        pairs = zip((part for part in own if part.kind == WEIGHT), self._values, strict=True)
        return [*own, *(dataclasses.replace(part, kind=self._kind, values=value) for part, value in pairs)]

    def scalars(self) -> Scalars:
        return self._state.scalars()

    def create(self, kinds: Mapping[str, Collection[str]], scalars: Scalars) -> None:
        own = {name: [kind for kind in of if kind != self._kind] for name, of in kinds.items()}
        self._state.create(own, scalars)

    def publish(self, step: int) -> None:
        self._state.publish(step)
