"""Gather the matrices of sources inside a rank, and compare them bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.layout import Block, Flat, ShardSource, numel
from alphadecay_dist.sharding.ownership import Plan, cost, plan

SMALL, LARGE = 1, 2**20  # budgets: a round a matrix, and one round for all


def exchange_of(
    sources: Sequence[ShardSource], budget: int, group: Any, dtype: torch.dtype | None = None
) -> tuple[Exchange, Plan]:
    """An exchange of whole tensors, and its plan."""
    dtype = dtype or sources[0].dtype
    world_size = dist.get_world_size(group)
    nbytes = {source.name: numel(source) * dtype.itemsize for source in sources}
    found = plan({source.name: cost(source.shape) for source in sources}, nbytes, world_size, budget)
    blocks = [Block(s.name, s.name, Flat(0, numel(s)), s.shape) for s in sources]
    return Exchange(sources, blocks, found, dtype, group), found


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
                for piece in source.pieces()
                if rank not in piece.holders
            )
            assert received == missing * dtype.itemsize
            assert sum(exchange.received_by_rank()) == sum_of(received, group)
            check_foretold(exchange, group)
    return len(matrices)


def sum_of(number: int, group: Any) -> int:
    """Sum over the ranks."""
    total = torch.tensor(number)
    dist.all_reduce(total, group=group)
    return int(total)


def check_foretold(exchange: Exchange, group: Any) -> None:
    """What was moved and held is what the plan alone foretells."""
    rank = dist.get_rank(group)
    expected = exchange.expected_traffic()
    assert exchange.bytes_received == expected.received[rank]
    assert exchange.bytes_sent == expected.sent[rank]
    assert exchange.peak_bytes == expected.peak[rank]
    assert expected.received.sum() == expected.sent.sum()
