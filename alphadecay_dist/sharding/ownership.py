"""Who analyses which matrix, and in which order: pure, the same on every rank.

A matrix has one owner rank. Owners are dealt by LPT (longest processing time first): the matrices in
falling order of cost, each to the rank that has the least so far. An owner takes its matrices in rounds, so
that what it must hold at once stays under a memory budget.
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
    """LPT: deal matrices to ranks so that the loads are near equal; ties go by name and lowest rank."""
    loads = [(0.0, rank) for rank in range(world_size)]
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        load, rank = heapq.heappop(loads)
        owners[name] = rank
        heapq.heappush(loads, (load + costs[name], rank))
    return owners


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
