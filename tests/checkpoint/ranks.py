"""Ranks as threads of one process, and an engine's state of plain tensors, for tests of checkpoints."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.engines.state import WEIGHT, Part
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.layout import Flat, Grid

Index = Flat | Grid


class _Shared:
    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=60)  # a busy disk flushes for seconds
        self.values: list[Any] = [None] * world_size


class Ranks(Collectives):
    """One of several ranks, each a thread."""

    def __init__(self, rank: int, world_size: int, shared: _Shared) -> None:
        super().__init__(None)
        self.rank = rank
        self.world_size = world_size
        self._shared = shared

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value."""
        self._shared.values[self.rank] = value
        self._shared.barrier.wait()
        everyone = list(self._shared.values)
        self._shared.barrier.wait()
        return everyone

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        return self.gather(value)[0]


def on_ranks(world_size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Call ``work`` with every rank, at the same time."""
    shared = _Shared(world_size)
    outcomes: list[Future[Any]] = [Future() for _ in range(world_size)]

    def call(rank: int) -> None:
        try:
            outcomes[rank].set_result(work(Ranks(rank, world_size, shared)))
        except BaseException as error:
            outcomes[rank].set_exception(error)

    for rank in range(world_size):  # daemons: one that hangs fails its test and keeps no process
        threading.Thread(target=call, args=(rank,), daemon=True).start()
    late = wait(outcomes, timeout=120).not_done
    if late:
        faulthandler.dump_traceback()
    assert not late, "ranks did not end in 120 s; the tracebacks of all threads are above"
    return [outcome.result() for outcome in outcomes]


class State:
    """A rank's parts of a few tensors with an Adam-like state that comes with the first step.

    Args:
        shapes: of the parameters.
        index: where this rank's part of each lies; None where it has none.
        saved: whether it saves what it has.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], index: dict[str, Index | None], saved: bool = True
    ) -> None:
        self.shapes = shapes
        self.index = index
        self.saved = saved
        self.tensors: dict[str, dict[str, Tensor]] = {WEIGHT: self._empty()}
        self.numbers: dict[str, dict[str, float]] = {}
        self.published: int | None = None

    def put(self, values: dict[str, dict[str, Tensor]], numbers: dict[str, dict[str, float]]) -> None:
        """Take this rank's parts of whole tensors, by kind and name."""
        self.numbers = numbers
        self.tensors = {kind: self._empty() for kind in values}
        for part in self.parts():
            part.values.copy_(cut(values[part.kind][part.name], part.index))

    def parts(self) -> list[Part]:
        """All parts that exist."""
        return [
            Part(name, kind, self.shapes[name], index, tensors[name], self.saved)
            for kind, tensors in self.tensors.items()
            for name, index in self.index.items()
            if index is not None
        ]

    def scalars(self) -> dict[str, dict[str, float]]:
        """As they were put."""
        return self.numbers

    def create(self, kinds: dict[str, list[str]], scalars: dict[str, dict[str, float]]) -> None:
        """Make the tensors of every kind."""
        self.numbers = scalars
        self.tensors |= {kind: self._empty() for own in kinds.values() for kind in own}

    def publish(self, step: int) -> None:
        """Remember the step."""
        self.published = step

    def _empty(self) -> dict[str, Tensor]:
        shapes = {
            name: index.shape if isinstance(index, Grid) else (index.numel,)
            for name, index in self.index.items()
            if index is not None
        }
        return {name: torch.full(shape, float("nan")) for name, shape in shapes.items()}


def cut(tensor: Tensor, index: Index) -> Tensor:
    """A part of a tensor."""
    if isinstance(index, Flat):
        return tensor.flatten()[index.start : index.stop]
    for dim, own in enumerate(index.ranges):
        tensor = torch.cat([tensor.narrow(dim, part.start, part.numel) for part in own], dim)
    return tensor
