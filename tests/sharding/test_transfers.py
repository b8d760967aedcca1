"""What one rank of many has to know: little, and soon."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from alphadecay_dist.sharding.layout import Block, Flat, Piece, flat_chunks
from alphadecay_dist.sharding.ownership import plan
from alphadecay_dist.sharding.transfers import layouts_of, rounds_of, whole_at


def job(world_size, count, shape=(64, 172)):
    """Flat pieces of so many equal matrices, and their plan."""
    size = shape[0] * shape[1]
    pieces = [Piece((rank,), part) for rank, part in enumerate(flat_chunks(size, world_size)) if part.numel]
    names = [f"m{number:04}" for number in range(count)]
    blocks = {name: Block(name, name, Flat(0, size), shape) for name in names}
    planned = plan(dict.fromkeys(names, 1.0), dict.fromkeys(names, 4 * size), world_size, 16 * 4 * size)
    return layouts_of(dict.fromkeys(names, pieces)), dict.fromkeys(names, shape), blocks, planned


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_what_one_rank_sends_another_expects_in_the_same_order(world_size):
    arguments = job(world_size, 5)
    ranks = [rounds_of(*arguments, rank) for rank in range(world_size)]
    for number in range(len(arguments[-1].rounds)):
        rounds = [own[number] for own in ranks]
        assert {own.moving for own in rounds} == {world_size > 1}
        for sender in range(world_size):
            for owner in range(world_size):
                sent = [t for t in rounds[sender].outgoing if t.owner == owner]
                assert sent == [t for t in rounds[owner].incoming if t.sender == sender]
    taken = Counter(t.name for own in ranks for one in own for t in (*one.own, *one.incoming))
    assert set(taken.values()) <= {world_size}


def test_a_rank_of_4096_keeps_its_own_transfers_alone():
    layouts, shapes, blocks, planned = job(4096, 900)
    begin = time.process_time()
    rounds = rounds_of(layouts, shapes, blocks, planned, 17)
    assert time.process_time() - begin < 5
    owned = sum(owner == 17 for owner in planned.owners.values())
    assert sum(len(own.outgoing) for own in rounds) == 900 - owned
    assert sum(len(own.incoming) for own in rounds) <= owned * 4096
    assert len({id(layout) for layout in layouts.values()}) == 1, "equal layouts are one"
    assert whole_at(layouts["m0000"], shapes["m0000"], blocks["m0000"], 17) is None
