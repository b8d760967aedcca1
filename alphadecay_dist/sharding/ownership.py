"""Who analyses which matrix, and in which order: pure, the same on every rank.

A matrix has one owner rank. Owners are dealt so that the longest queue of work is short. An owner takes its
matrices in rounds, so that what it must hold at once stays under a memory budget.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Owners and rounds.

    Attributes:
        owners: owner rank by matrix name.
        rounds: names in the order of work; an owner's matrices of one round are in its memory together.
        budget: bytes that an exchange by this plan may hold at once.
    """

    owners: Mapping[str, int]
    rounds: tuple[tuple[str, ...], ...]
    budget: int


def cost(shape: Sequence[int], tridiagonal: float = 1.0) -> float:
    """Work of one spectrum, Gram matrix and tridiagonalisation, in floating-point operations of the first.

    Args:
        shape: (m, n), or a Conv2d's (out, in, height, width), which has a spectrum a position.
        tridiagonal: how many operations of a matrix product take as long as one of a tridiagonalisation,
            which is bound by memory.

    Returns:
        m n N multiply-adds at 2 operations, and 4/3 N^3 times ``tridiagonal``, where N = min(m, n).
    """
    small = min(shape[0], shape[1])
    one = 2.0 * shape[0] * shape[1] * small + tridiagonal * 4.0 / 3.0 * small**3
    return math.prod(shape[2:]) * one


def assign_owners(costs: Mapping[str, float], world_size: int) -> dict[str, int]:
    """Deal matrices to ranks so that the longest queue is short: LPT, then moves and swaps out of that queue.

    LPT (longest processing time first) takes the matrices in falling order of cost, each to the rank that has
    the least so far. With a few matrices a rank it misses deals that are a tenth better, which the second
    step finds. Ties go by name and lowest rank.
    """
    queues: list[dict[str, float]] = [{} for _ in range(world_size)]
    loads = [(0.0, rank) for rank in range(world_size)]
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        load, rank = heapq.heappop(loads)
        queues[rank][name] = costs[name]
        heapq.heappush(loads, (load + costs[name], rank))
    _level(queues)
    owners = {name: rank for rank, queue in enumerate(queues) for name in queue}
    return {name: owners[name] for name in sorted(owners)}


EVEN = 1.02  # longest queue over mean that needs no levelling


def _level(queues: list[dict[str, float]]) -> None:
    """Shorten the longest queue by a move or a swap with another one, for as long as that is possible."""
    loads = [math.fsum(queue.values()) for queue in queues]
    mean = math.fsum(loads) / len(loads)
    for _ in range(sum(map(len, queues))):
        longest = max(range(len(queues)), key=lambda rank: (loads[rank], -rank))
        if loads[longest] <= EVEN * mean:
            return
        swaps = (
            (max(loads[longest] - given + taken, loads[other] + given - taken), other, give, take)
            for other in range(len(queues))
            if other != longest
            for given, give in _by_cost(queues[longest]).items()
            for taken, take in [*_by_cost(queues[other]).items(), (0.0, "")]
            if taken < given
        )
        best = min(swaps, default=None)
        if best is None or best[0] >= loads[longest] * (1 - 1e-9):
            return
        _, other, give, take = best
        queues[other][give] = queues[longest].pop(give)
        if take:
            queues[longest][take] = queues[other].pop(take)
        loads[longest], loads[other] = (math.fsum(queues[rank].values()) for rank in (longest, other))


def _by_cost(queue: Mapping[str, float]) -> dict[float, str]:
    """The first name of each cost: which one of equals moves makes no difference."""
    return {queue[name]: name for name in sorted(queue, reverse=True)}


def plan(costs: Mapping[str, float], nbytes: Mapping[str, int], world_size: int, budget: int) -> Plan:
    """Owners for all matrices, and rounds in which no owner receives more than a quarter of the budget.

    The four quarters are: a round that has arrived, the matrix that is put together from it, what is sent
    of the next round, and what is received of it.

    Args:
        costs: work by name, see :func:`cost`.
        nbytes: bytes that a matrix takes at its owner.
        world_size: number of ranks.
        budget: bytes to hold at once; a matrix of more than a quarter gets a round of its own.

    Returns:
        The plan, the same for the same arguments.
    """
    owners = assign_owners(costs, world_size)
    rounds: list[list[str]] = []
    position, held = [0] * world_size, [0] * world_size
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = owners[name]
        if held[rank] and 4 * (held[rank] + nbytes[name]) > budget:
            position[rank], held[rank] = position[rank] + 1, 0
        held[rank] += nbytes[name]
        while len(rounds) <= position[rank]:
            rounds.append([])
        rounds[position[rank]].append(name)
    return Plan(owners, tuple(tuple(names) for names in rounds), budget)


def default_budget(nbytes: Mapping[str, int]) -> int:
    """Two of the largest matrices, as many as a round of one takes, or 256 MiB where that is more."""
    return max(2 * max(nbytes.values()), 256 * 2**20)
