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
    """Clock offsets from rounds of an all-gather, in which each rank reads its clock on entering a round.

    A rank enters a round after rank 0 has entered the previous one, because it waited for its values. It
    enters before rank 0 enters the next one. So each round is a ping to all ranks at once.

    Args:
        stamps: one sequence per round with the clocks by rank; at least three rounds.

    Returns:
        By rank, the seconds by which its clock is ahead of rank 0's, and half the duration of that
        measurement. Both are from the fastest round.
    """
    rounds = range(1, len(stamps) - 1)
    fastest = min(rounds, key=lambda number: stamps[number + 1][0] - stamps[number - 1][0])
    before, after = stamps[fastest - 1][0], stamps[fastest + 1][0]
    offsets = [stamp - (before + after) / 2 for stamp in stamps[fastest]]
    return [(0.0 if rank == 0 else offset, (after - before) / 2) for rank, offset in enumerate(offsets)]
