"""How fast two ranks exchange data; the content of the messages does not matter."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from alphadecay_dist.doctor.findings import Link
from alphadecay_dist.doctor.pairs import Pair
from alphadecay_dist.sharding.collectives import Collectives

REPEATS = 5
BYTES = {"cuda": 64 * 2**20, "cpu": 4 * 2**20}  # per message: a few milliseconds on a healthy network


def measured_links(
    ranks: Collectives, rounds: Sequence[tuple[str, list[Pair]]], device: torch.device
) -> list[Link]:
    """Let the pairs of each round exchange at the same time. Collective.

    Args:
        ranks: all ranks.
        rounds: see :func:`alphadecay_dist.doctor.pairs.rounds`.
        device: the device of this rank's messages.

    Returns:
        All links, equal on every rank. A rate is that of the slower end, from the median time.
    """
    mine = torch.ones(BYTES[device.type], dtype=torch.uint8, device=device)
    theirs = torch.empty_like(mine)
    rates: list[dict[Pair, float]] = []
    for _, pairs in rounds:
        partner = next((pair for pair in pairs if ranks.rank in pair), None)
        ranks.barrier()
        own = {}
        if partner is not None:
            peer = partner[0] + partner[1] - ranks.rank
            exchange(mine, theirs, peer)  # the first exchange opens the connection
            times = [exchange(mine, theirs, peer) for _ in range(REPEATS)]
            own[partner] = mine.numel() / statistics.median(times)
        rates.append(own)
    found = ranks.gather(rates)
    return [
        Link(
            (min(pair), max(pair)), kind, min(rates[number][pair] for rates in found if pair in rates[number])
        )
        for number, (kind, pairs) in enumerate(rounds)
        for pair in pairs
    ]


def exchange(mine: torch.Tensor, theirs: torch.Tensor, peer: int) -> float:
    """Send to a rank and receive from it at the same time; returns the seconds."""
    began = time.perf_counter()
    both = [dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)]
    for request in dist.batch_isend_irecv(both):
        request.wait()
    if mine.device.type == "cuda":
        torch.cuda.synchronize(mine.device)
    return time.perf_counter() - began
