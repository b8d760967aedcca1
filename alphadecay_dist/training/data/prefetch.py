"""Reading, tokenizing and packing the next update in the background of the current one."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from alphadecay_dist.training.data.batches import Batch, TrainingData


class Prefetched:
    """Training data read one update ahead, in a host thread; its state is that of the last update handed out.

    Args:
        data: this rank's data; nothing else may use it from now on.
        pin: keep the batches in page-locked memory, from which a GPU copies asynchronously.
    """

    def __init__(self, data: TrainingData, *, pin: bool) -> None:
        self._data = data
        self._pin = pin
        self._state = data.state()
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._ahead: Future[tuple[list[Batch], dict[str, Any]]] | None = None

    def next_update(self) -> list[Batch]:
        """This rank's micro-batches of the next update, on the CPU.

        Raises:
            UserError: the data cannot be read.
        """
        ahead = self._ahead or self._pool.submit(self._read)
        self._ahead = None
        batches, self._state = ahead.result()
        self._ahead = self._pool.submit(self._read)
        return batches

    def state(self) -> dict[str, Any]:
        """The state after the last update handed out; see :meth:`.batches.TrainingData.state`."""
        return self._state

    def load(self, states: Mapping[str, Any]) -> None:
        """Continue from the states of all lanes."""
        if self._ahead is not None:
            self._ahead.exception()  # waits; what was read ahead is discarded
            self._ahead = None
        self._data.load(states)
        self._state = self._data.state()

    def _read(self) -> tuple[list[Batch], dict[str, Any]]:
        batches = self._data.next_update()
        if self._pin:
            batches = [batch.pinned() for batch in batches]
        return batches, self._data.state()
