"""Gather the matrices of sources inside a rank, and compare them bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.layout import Block, Flat, ShardSource
from alphadecay_dist.sharding.ownership import Plan, cost, plan
from alphadecay_dist.sharding.planning import exchange_device, require_one_schedule
from alphadecay_dist.sharding.routes import Routes
from alphadecay_dist.sharding.schedule import schedule_of

SMALL, LARGE = 1, 2**20  # budgets: a round a matrix, and one round for all


def exchange_of(
    sources: Sequence[ShardSource], budget: int, group: Any, dtype: torch.dtype | None = None
) -> tuple[Exchange, Plan]:
    """An exchange of whole tensors, and its plan."""
    dtype = dtype or sources[0].dtype
    nbytes = {source.name: numel(source) * dtype.itemsize for source in sources}
    costs = {source.name: cost(source.shape) for source in sources}
    found = plan(costs, nbytes, dist.get_world_size(group), budget)
    blocks = [Block(s.name, s.name, Flat(0, numel(s)), s.shape) for s in sources]
    return exchange_by(found, sources, blocks, dtype, group), found


def exchange_by(
    found: Plan, sources: Sequence[ShardSource], blocks: Sequence[Block], dtype: torch.dtype, group: Any
) -> Exchange:
    """An exchange by a plan that the ranks agree on."""
    layouts = {source.name: source.layout for source in sources}
    shapes = {source.name: source.shape for source in sources}
    copied = [source.name for source in sources if source.dtype != dtype]
    routes = Routes(layouts, shapes, blocks, dist.get_world_size(group), dtype.itemsize, copied)
    schedule, device = schedule_of(found, routes), exchange_device(sources, group)
    require_one_schedule(sources, schedule, dtype, device, group)
    return Exchange(sources, schedule, dtype, device, group)


def numel(source: ShardSource) -> int:
    """Number of elements of the whole tensor."""
    return math.prod(source.shape)


def collect(exchange: Exchange) -> tuple[dict[str, Tensor], int]:
    """Copies of what this rank gets, and the bytes it took."""
    return {name: matrix.clone() for name, matrix in exchange.matrices()}, exchange.bytes_received


def check_gathering(sources: Sequence[ShardSource], expected: Mapping[str, Tensor], group: Any) -> int:
    """Gather under several budgets: every matrix whole at its owner, and no byte that the owner has.

    Returns:
        Number of matrices that this rank owns.
    """
    rank = dist.get_rank(group)
    for dtype in (sources[0].dtype, torch.bfloat16):
        for budget in (SMALL, 30_000, LARGE):
            exchange, found = exchange_of(sources, budget, group, dtype)
            matrices, received = collect(exchange)
            assert set(matrices) == {name for name, owner in found.owners.items() if owner == rank}
            for name, matrix in matrices.items():
                assert torch.equal(matrix, expected[name].to(dtype)), name
            missing = sum(
                piece.index.numel
                for source in sources
                if source.name in matrices
                for piece in source.layout.pieces
                if rank not in piece.holders
            )
            assert received == missing * dtype.itemsize
            assert sum(exchange.received_by_rank()) == sum_of(received, group)
            check_executed(exchange, group)
    return len(matrices)


def sum_of(number: int, group: Any) -> int:
    """Sum over the ranks."""
    total = torch.tensor(number)
    dist.all_reduce(total, group=group)
    return int(total)


def check_executed(exchange: Exchange, group: Any) -> None:
    """What was moved and held, counted on real buffers, is what the schedule says."""
    rank, expected = dist.get_rank(group), exchange.schedule
    assert exchange.bytes_received == expected.received[rank]
    assert exchange.bytes_sent == expected.sent[rank]
    assert exchange.peak_bytes == expected.peak[rank]
    assert expected.received.sum() == expected.sent.sum()
