"""Which ranks exchange data with which, so that a slow node differs from its partners. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from alphadecay_dist.doctor.findings import BETWEEN, WITHIN, Place

T = TypeVar("T")
Pair = tuple[int, int]
MOST = 3  # rounds of each kind: three partners distinguish a slow node from a slow link


def rounds(places: Sequence[Place]) -> list[tuple[str, list[Pair]]]:
    """Rounds of pairs of ranks that exchange at the same time; no rank is in two pairs of a round.

    Within a node, each rank is paired with others of its node. Between nodes, whole nodes are paired and
    their ranks one to one, so that the network is loaded as in training.

    Returns:
        The kind and the pairs of each round.
    """
    nodes = ranks_by_node(places)
    own = [tournament(ranks) for ranks in nodes.values()]
    inside = [[pair for met in own if number < len(met) for pair in met[number]] for number in range(MOST)]
    outside = []
    met = tournament(list(nodes))
    for number in range(MOST if met else 0):
        shift, most = number // len(met), max(len(ranks) for ranks in nodes.values())
        if shift < most:  # two or three nodes have few rounds: their ranks change partners
            facing = met[number % len(met)]
            outside.append(
                [pair for a, b in facing for pair in zip(nodes[a], _turned(nodes[b], shift), strict=False)]
            )
    kinds = [(WITHIN, pairs) for pairs in inside] + [(BETWEEN, pairs) for pairs in outside]
    return [(kind, pairs) for kind, pairs in kinds if pairs]


def _turned(ranks: list[int], shift: int) -> list[int]:
    return ranks[shift:] + ranks[:shift]


def ranks_by_node(places: Sequence[Place]) -> dict[str, list[int]]:
    """The ranks of each node, in the order of the nodes' lowest ranks."""
    nodes: dict[str, list[int]] = {}
    for place in places:
        nodes.setdefault(place.node, []).append(place.rank)
    return nodes


def tournament(players: Sequence[T]) -> list[list[tuple[T, T]]]:
    """Rounds in which each meets each other once (circle method); if their number is odd, one pauses."""
    seats: list[T | None] = [*players, *([None] if len(players) % 2 else [])]
    met = []
    for _ in range(len(seats) - 1):
        facing = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        met.append([(a, b) for a, b in facing if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return met
