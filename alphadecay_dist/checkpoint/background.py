"""Save a checkpoint in the background: a thread writes a copy in host memory while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alphadecay_dist.checkpoint import writer
from alphadecay_dist.checkpoint.random_state import random_state
from alphadecay_dist.checkpoint.shards import Shard
from alphadecay_dist.engines.state import EngineState, Part
from alphadecay_dist.sharding.collectives import Collectives


class BackgroundSave:
    """A checkpoint that is written in the background, and made whole by :meth:`complete`.

    Training waits while the copy is made, in as much host memory as this rank's file has bytes. The thread
    takes part in no collective.

    Args:
        root, step, engine_state, layout, state, ranks: as for :func:`writer.save`; collective.

    Raises:
        RunError: the directory cannot be made.
    """

    def __init__(
        self,
        root: Path,
        step: int,
        *,
        engine_state: EngineState,
        layout: str,
        state: dict[str, Any],
        ranks: Collectives,
    ) -> None:
        with ranks.raise_on_all_ranks():
            parts = _copies(engine_state.parts())
        states = random_state()
        self._saving = writer.begin(
            root, step, engine_state=engine_state, layout=layout, state=state, ranks=ranks
        )
        self._shard: Future[Shard] = Future()
        # A daemon: a process that fails does not wait for it.
        threading.Thread(target=self._write, args=(parts, states), name="checkpoint", daemon=True).start()

    @property
    def written(self) -> bool:
        """Whether this rank's file is on disk, or could not be written."""
        return self._shard.done()

    def complete(self, keep: int) -> None:
        """Wait for all ranks' files and make the checkpoint whole; collective. See :func:`writer.save`."""
        self._saving.complete(self._shard.result, keep)

    def _write(self, parts: list[Part], states: dict[str, Any]) -> None:
        try:
            self._shard.set_result(self._saving.write(parts, states))
        except BaseException as error:  # complete() raises it
            self._shard.set_exception(error)


def _copies(parts: Iterable[Part]) -> list[Part]:
    """Copies of what this rank saves, made by one thread: with many it took seconds on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [replace(part, values=part.values.to("cpu", copy=True)) for part in parts if part.saved]
    finally:
        torch.set_num_threads(threads)
