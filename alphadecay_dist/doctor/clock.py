"""By how much the ranks' clocks differ."""

from __future__ import annotations

import time
from collections.abc import Sequence

from alphadecay_dist.sharding.collectives import Collectives

ROUNDS = 7


def now() -> float:
    """This host's clock, in seconds."""
    return time.time()


def measured_offsets(ranks: Collectives) -> list[tuple[float, float]]:
    """See :func:`offsets`. Collective."""
    return offsets([ranks.gather(now()) for _ in range(ROUNDS)])


def offsets(stamps: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Offsets from rounds of an all-gather of clocks, each read on entering a round.

    A rank enters a round after rank 0 has entered the one before, whose values it waited for, and before
    rank 0 enters the next: so each round is a ping to all ranks at once.

    Args:
        stamps: clocks by rank, a sequence a round; three rounds or more.

    Returns:
        By rank, the seconds by which its clock is before rank 0's, and half the time in which that was found;
        of the fastest round.
    """
    rounds = range(1, len(stamps) - 1)
    fastest = min(rounds, key=lambda number: stamps[number + 1][0] - stamps[number - 1][0])
    before, after = stamps[fastest - 1][0], stamps[fastest + 1][0]
    offsets = [stamp - (before + after) / 2 for stamp in stamps[fastest]]
    return [(0.0 if rank == 0 else offset, (after - before) / 2) for rank, offset in enumerate(offsets)]
