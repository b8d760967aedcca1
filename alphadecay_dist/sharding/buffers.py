"""The memory of one run of an exchange on one rank, and the count of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from alphadecay_dist.errors import RunError
from alphadecay_dist.sharding.schedule import Schedule


class Buffers:
    """Buffers for what a rank sends and receives, as the schedule says.

    Either one for what is sent and two for what arrives serve all rounds, and are allocated here; or each
    round takes its own, and frees them.

    Args:
        schedule: of the exchange.
        rank: this one.
        dtype: of the elements.
        device: where they lie.

    Attributes:
        peak: most bytes that were held at once: buffers, and matrices that take memory of their own.
    """

    def __init__(self, schedule: Schedule, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self.peak = self._held = 0
        self._dtype, self._device = dtype, device
        self._serve_all = schedule.keeps_buffers(rank)
        if self._serve_all:
            self._packed = self._allocate(int(schedule.packed[rank]) // dtype.itemsize)
            self._arriving = [self._allocate(int(own[rank]) // dtype.itemsize) for own in schedule.arriving]

    def to_send(self, numel: int) -> Tensor:
        """Room for what is packed for a round, of which no other is on its way."""
        return self._packed.narrow(0, 0, numel) if self._serve_all else self._allocate(numel)

    def to_receive(self, numel: int, slot: int) -> Tensor:
        """Room for what arrives of a round, in its slot."""
        return self._arriving[slot].narrow(0, 0, numel) if self._serve_all else self._allocate(numel)

    def release(self, buffer: Tensor | None) -> None:
        """Count a round's buffer as freed, where it is its own; the caller drops it."""
        if buffer is not None and not self._serve_all:
            self._held -= buffer.nbytes

    @contextmanager
    def holding(self, matrix: Tensor) -> Iterator[None]:
        """Count a matrix while it is handed out."""
        self._hold(matrix.nbytes)
        yield
        self._held -= matrix.nbytes

    def _allocate(self, numel: int) -> Tensor:
        buffer = torch.empty(numel, dtype=self._dtype, device=self._device)
        self._hold(buffer.nbytes)
        return buffer

    def _hold(self, nbytes: int) -> None:
        self._held += nbytes
        self.peak = max(self.peak, self._held)


@contextmanager
def needing_memory(what: str) -> Iterator[None]:
    """Work that takes memory; where there is none, say so in one line.

    Args:
        what: the memory is for, for messages.

    Raises:
        RunError: there is no memory for it.
    """
    try:
        yield
    except RunError:
        raise
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for it on CPUs
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())[:300]
        raise RunError(
            f"no memory for {what} ({type(error).__name__}: {reason}); give a smaller memory_budget, or more "
            "ranks"
        ) from error
