"""Who analyses which matrix, and in which order: pure, the same on every rank and in every run.

1. Each matrix costs what its spectrum takes (:func:`cost`).
2. Each gets one owner rank, so that the longest queue of work is short (:func:`assign_owners`).
3. An owner takes its matrices in rounds, so that what any rank must hold at once stays under a memory budget
   (:func:`plan`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]  # a number a rank

# How many operations of a matrix product take as long as one of a tridiagonalisation, by type of device. A
# constant, so that no timing decides who owns what. On one thread of an AMD EPYC (Zen 3) that had other work
# too, spectral/rates.py measured a ratio of 5.3 in the median of 31 runs, and 6.2 at the best speeds of both;
# on other CPUs 3.8 to 7.1. For GPUs 1000 is an estimate, not measured: the solver waits on itself there, and
# from about there on a larger number deals the same.
TRIDIAGONAL = {"cpu": 6.0, "cuda": 1000.0}


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


@dataclass(frozen=True)
class Move:
    """What it takes to bring one matrix to its owner, in bytes.

    Attributes:
        received: by the owner, from other ranks.
        assembled: of the matrix put together; 0 where the owner holds it whole.
        senders: the other ranks that send a part of it.
        sent: by each of them.
    """

    received: int
    assembled: int
    senders: Counts
    sent: Counts

    def fits(self, moving: Counts, owner: int, room: float) -> bool:
        """Whether no rank receives and sends more than ``room`` with this beside what moves already."""
        if not self.received:
            return True
        beside = moving[self.senders] + self.sent
        return bool(moving[owner] + self.received <= room and beside.max() <= room)


STAYS = Move(0, 0, np.zeros(0, np.int64), np.zeros(0, np.int64))  # of a matrix that its owner has


def unmoved(name: str, owner: int) -> Move:
    """As if every owner had its matrices."""
    return STAYS


def cost(shape: Sequence[int], tridiagonal: float = 1.0) -> float:
    """Work of one spectrum, Gram matrix and tridiagonalisation, in floating-point operations of the first.

    Args:
        shape: (m, n), or a Conv2d's (out, in, height, width), which has a spectrum a position.
        tridiagonal: how many operations of a matrix product take as long as one of a tridiagonalisation,
            which is bound by memory; see ``TRIDIAGONAL``.

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


def plan(
    costs: Mapping[str, float],
    nbytes: Mapping[str, int],
    world_size: int,
    budget: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    moves: Callable[[str, int], Move] = unmoved,
) -> Plan:
    """Owners for all matrices, and the rounds in which they are brought together.

    Args:
        costs: work by name, see :func:`cost`.
        nbytes: bytes that a matrix takes at its owner.
        world_size: number of ranks.
        budget: bytes to hold at once; what is held is less, or what a single matrix takes.
        shapes: of the matrices: among those of one cost, equal ones follow each other, for they are analysed
            in one call.
        moves: of a matrix, by name, to an owner; without it what ranks send is not counted.

    Returns:
        The plan, the same for the same arguments.
    """
    owners = assign_owners(costs, world_size)
    of, shape = costs.__getitem__, (shapes or {}).get
    order = sorted(costs, key=lambda name: (-of(name), shape(name, ()), name))
    ways = {name: moves(name, owners[name]) for name in order}
    return Plan(owners, _rounds(order, owners, nbytes, ways, world_size, budget), budget)


def _rounds(
    order: Sequence[str],
    owners: Mapping[str, int],
    nbytes: Mapping[str, int],
    ways: Mapping[str, Move],
    world_size: int,
    budget: int,
) -> tuple[tuple[str, ...], ...]:
    """Each matrix in the first round that has room for it at its owner and at all that send of it.

    A budget has four quarters: a round that has arrived, the matrix that is put together from it, and, on
    the way, the next one: what of it is received and what is sent, which share two quarters. A matrix of more
    than a quarter is alone with its owner in its round, and the ranks may take and give as much at once as
    the budget holds, or as the largest matrix takes in any case.
    """
    most = max([budget, *(way.received + way.assembled for way in ways.values())])
    rounds: list[list[str]] = []
    moving: list[Counts] = []  # bytes of each round that a rank receives and sends, by rank
    position, held = [0] * world_size, [0] * world_size
    for name in order:
        rank, way = owners[name], ways[name]
        room = budget / 2 if 4 * nbytes[name] <= budget else most
        number = position[rank]
        if held[rank] and 4 * (held[rank] + nbytes[name]) > budget:
            number += 1
        while number < len(rounds) and not way.fits(moving[number], rank, room):
            number += 1
        if number == len(rounds):
            rounds.append([])
            moving.append(np.zeros(world_size, np.int64))
        held[rank] = nbytes[name] + (held[rank] if number == position[rank] else 0)
        position[rank] = number
        rounds[number].append(name)
        moving[number][rank] += way.received
        moving[number][way.senders] += way.sent
    return tuple(tuple(names) for names in rounds)


def default_budget(nbytes: Mapping[str, int]) -> int:
    """Two of the largest matrices, as many as a round of one takes, or 256 MiB where that is more."""
    return max(2 * max(nbytes.values()), 256 * 2**20)
