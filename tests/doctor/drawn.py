"""Findings of healthy nodes, to be spoiled by a test."""

from __future__ import annotations

from dataclasses import replace

from alphadecay_dist.doctor.findings import BETWEEN, WITHIN, Device, Finding, Folder, Link, Place, Processor
from alphadecay_dist.doctor.pairs import rounds

GIB = 2**30
VERSIONS = {"torch": "2.13.0", "recipe": "4711"}


def places(nodes: int, ranks: int, device: str = "cuda") -> list[Place]:
    """So many ranks on each of n1, n2, ..., each a machine of its own."""
    return [
        Place(node * ranks + local, f"n{node + 1}", f"boot {node}", local, ranks, device, ranks, VERSIONS)
        for node in range(nodes)
        for local in range(ranks)
    ]


def findings(nodes: int, ranks: int) -> list[Finding]:
    """Ranks with a GPU each, all well."""
    return [
        Finding(
            place=place,
            device=Device("H100", f"GPU-{place.rank}", 80 * GIB, 79 * GIB, None),
            processor=Processor(tuple(range(4 * ranks)), 4),
            kernel="6.1.0",
            shared_memory=8 * GIB,
            folder=Folder("/shared/runs", None, True, None, 500 * GIB, 45 * GIB),
            clock=(0.0, 0.001),
        )
        for place in places(nodes, ranks)
    ]


def spoiled(healthy: list[Finding], ranks: list[int], **fields: object) -> list[Finding]:
    """The findings, with other fields at some ranks."""
    return [replace(f, **fields) if f.place.rank in ranks else f for f in healthy]


def unlike(healthy: list[Finding], rank: int, **versions: str) -> list[Finding]:
    """The findings, with other versions at a rank."""
    place = healthy[rank].place
    return spoiled(healthy, [rank], place=replace(place, versions={**VERSIONS, **versions}))


def links(at: list[Place], slow: dict[tuple[int, int] | int | str, float]) -> list[Link]:
    """All links that would be measured: 100 GB/s within and 20 between, times the factors of what is slow.

    A factor belongs to a pair of ranks, to a rank, or to a node's links to other nodes.
    """
    node_of = {place.rank: place.node for place in at}

    def factor(a: int, b: int) -> float:
        crossing = [node_of[a], node_of[b]] if node_of[a] != node_of[b] else []
        return min([1.0, *(slow.get(key, 1.0) for key in [(a, b), a, b, *crossing])])

    usual = {WITHIN: 1e11, BETWEEN: 2e10}
    met = [(kind, min(pair), max(pair)) for kind, pairs in rounds(at) for pair in pairs]
    return [Link((a, b), kind, usual[kind] * factor(a, b)) for kind, a, b in met]
