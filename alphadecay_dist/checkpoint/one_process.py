"""The only process, where a function asks for ranks: commands read checkpoints without a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class OneProcess:
    """:class:`alphadecay_dist.checkpoint.writer.Ranks` of one rank: nothing is exchanged."""

    rank = 0
    world_size = 1

    def gather(self, value: T) -> list[T]:
        """The one value there is."""
        return [value]

    def raise_on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run ``work``."""
        return work()

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work``."""
        return work()


ONE_PROCESS = OneProcess()
