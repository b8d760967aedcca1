"""Rates of links -> which nodes, ranks or single links are slow. Pure, so equal on every rank."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alphadecay_dist.doctor.findings import BETWEEN, WITHIN, Limits, Link, Place, Problem

K = TypeVar("K", bound=Hashable)
ADVICE = {
    WITHIN: "look at its links (nvidia-smi topo -m), and for what else runs there",
    BETWEEN: "look at its network, or take it out of the job (--exclude)",
}
MOSTLY = 0.5  # a node or rank is slow itself if a larger part of its links is slow


def judge_links(links: Sequence[Link], places: Sequence[Place], limits: Limits) -> list[Problem]:
    """Name what is slow, for each kind of link.

    If all ranks are on one machine without GPUs, slow links are only warnings: the ranks share its cores.
    """
    return [problem for kind in (WITHIN, BETWEEN) for problem in _of_kind(kind, links, places, limits)]


def usual_rate(links: Sequence[Link]) -> float:
    """The median over ranks of each rank's best rate: a slow rank counts once, not with every link.

    Args:
        links: one or more links of one kind.
    """
    best: dict[int, float] = {}
    for link in links:
        for rank in link.ranks:
            best[rank] = max(best.get(rank, 0.0), link.rate)
    return statistics.median(best.values())


@dataclass(frozen=True)
class _Blame:
    """Whose links are slow: a description ``who``, the ranks at fault, and the slow links."""

    who: str
    ranks: Collection[int]
    links: Sequence[Link]


def _of_kind(kind: str, links: Sequence[Link], places: Sequence[Place], limits: Limits) -> list[Problem]:
    own = [link for link in links if link.kind == kind]
    if not own:
        return []
    least = limits.link_fraction * usual_rate(own)
    slow = [link for link in own if link.rate < least]
    node_of = {place.rank: place.node for place in places}
    return [
        Problem(
            bad=any(place.device == "cuda" for place in places) or len({p.machine for p in places}) > 1,
            nodes=tuple(dict.fromkeys(node_of[rank] for rank in sorted(blame.ranks))),
            ranks=tuple(sorted(blame.ranks)),
            what=f"bandwidth {kind}",
            found=f"{blame.who}: {min(link.rate for link in blame.links) / 1e9:.3g} GB/s",
            expected=f"{least / 1e9:.3g} GB/s or more ({limits.link_fraction:g} of the median)",
            advice=ADVICE[kind],
        )
        for blame in _blames(kind, own, slow, node_of)
    ]


def _blames(
    kind: str, own: Sequence[Link], slow: Sequence[Link], node_of: Mapping[int, str]
) -> Iterator[_Blame]:
    """Whole nodes first, then ranks, then single links."""
    rest = list(slow)
    if kind == BETWEEN:
        for node, links in _culprits(own, rest, node_of.__getitem__):
            ranks = {rank for link in links for rank in link.ranks if node_of[rank] == node}
            yield _Blame("its links to other nodes", ranks, links)
            rest = [link for link in rest if link not in links]
    for rank, links in _culprits(own, rest, lambda rank: rank):
        yield _Blame("its links to several others", [rank], links)
        rest = [link for link in rest if link not in links]
    for link in rest:
        a, b = link.ranks
        yield _Blame(f"between rank {a} on {node_of[a]} and rank {b} on {node_of[b]}", link.ranks, [link])


def _culprits(
    own: Sequence[Link], slow: Sequence[Link], owner: Callable[[int], K]
) -> list[tuple[K, list[Link]]]:
    """The owners (nodes or ranks) most of whose links are slow, to several others; the worst first.

    Each comes with its slow links. These are then no evidence against the owners at their other ends.
    """
    had = Counter(owner(rank) for link in own for rank in link.ranks)
    rest = list(slow)
    culprits: list[tuple[K, list[Link]]] = []
    while True:
        theirs: dict[K, list[Link]] = {}
        for link in rest:
            for who in {owner(rank) for rank in link.ranks}:
                theirs.setdefault(who, []).append(link)
        shares = {
            who: len(links) / had[who]
            for who, links in theirs.items()
            if len({owner(rank) for link in links for rank in link.ranks}) > 2
        }
        worst = max(shares, key=lambda who: (shares[who], len(theirs[who])), default=None)
        if worst is None or shares[worst] <= MOSTLY:
            return culprits
        culprits.append((worst, theirs[worst]))
        rest = [link for link in rest if link not in theirs[worst]]
