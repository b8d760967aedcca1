"""One schedule: what each rank sends, receives and holds in it, rank by rank and for many ranks at once."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.sharding.layout import Block, Flat, Layout, Piece, chunked_layout, replicated_layout
from alphadecay_dist.sharding.ownership import plan
from alphadecay_dist.sharding.routes import Routes
from alphadecay_dist.sharding.schedule import schedule_of

SHAPE, ITEMSIZE = (64, 172), 4


def schedule(layouts, world_size, budget, shape=SHAPE, copied=()):
    """Equal matrices as they lie in the layouts given by name."""
    size = shape[0] * shape[1]
    blocks = [Block(name, name, Flat(0, size), shape) for name in layouts]
    nbytes = dict.fromkeys(layouts, ITEMSIZE * size)
    routes = Routes(layouts, dict.fromkeys(layouts, shape), blocks, world_size, ITEMSIZE, copied)
    found = plan(dict.fromkeys(layouts, 1.0), nbytes, world_size, budget, moves=routes.move)
    return schedule_of(found, routes)


def chunked(world_size, count, rounds=1):
    """Matrices in a chunk a rank; the budget gives an owner as many at once as that many rounds take."""
    size = SHAPE[0] * SHAPE[1]
    layouts = {f"m{number:04}": chunked_layout(size, world_size) for number in range(count)}
    at_once = -(-count // (world_size * rounds))
    return schedule(layouts, world_size, 4 * at_once * ITEMSIZE * size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_what_one_rank_sends_another_expects_in_the_same_order(world_size):
    found = chunked(world_size, 9, rounds=2)
    ranks = [found.rounds_of(rank) for rank in range(world_size)]
    for number, current in enumerate(found.rounds):
        rounds = [own[number] for own in ranks]
        assert current.moving == (world_size > 1)
        for sender in range(world_size):
            for owner in range(world_size):
                sent = [t for t in rounds[sender].outgoing if t.owner == owner]
                assert sent == [t for t in rounds[owner].incoming if t.sender == sender]
    parts = [t for own in ranks for one in own for t in (*one.local, *one.incoming)]
    if world_size > 1:
        assert Counter(t.name for t in parts) == dict.fromkeys(found.plan.owners, world_size)
    else:
        assert not parts, "a rank that holds all of it puts nothing together"


def bytes_of(transfers):
    return ITEMSIZE * sum(transfer.numel for transfer in transfers)


cuts = st.lists(st.integers(0, 400), max_size=4).map(lambda inner: [0, *sorted(inner), 400])


@settings(deadline=None)
@given(
    st.lists(cuts, min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(1, 12_000),
    st.randoms(use_true_random=False),
)
def test_bytes_and_buffers_are_those_of_the_transfers_of_each_rank(cuts, world_size, budget, random):
    layouts = {}
    for number, bounds in enumerate(cuts):
        ranges = [Flat(*pair) for pair in pairwise(bounds) if pair[0] < pair[1]]
        ranks = random.sample(range(world_size), min(len(ranges), world_size))
        ranges[len(ranks) - 1 :] = [Flat(ranges[len(ranks) - 1].start, 400)]  # no rank holds two pieces
        layouts[f"m{number}"] = Layout(Piece((rank,), part) for rank, part in zip(ranks, ranges, strict=True))
    found = schedule(layouts, world_size, budget, shape=(20, 20))
    moving = np.zeros(len(found.rounds), bool)
    for rank in range(world_size):
        own = found.rounds_of(rank)
        sent = [bytes_of(one.outgoing) for one in own]
        received = [bytes_of(one.incoming) for one in own]
        moving |= np.array(received) > 0
        assert (sum(sent), sum(received)) == (found.sent[rank], found.received[rank])
        assert max(sent) == found.packed[rank]
        for slot in (0, 1):
            in_slot = [size for size, one in zip(received, found.rounds, strict=True) if one.slot == slot]
            assert max(in_slot, default=0) == found.arriving[slot, rank]
        assert found.owned()[rank] == [name for one in own for name in one.whole]
        assembled = any(place is None for one in own for place in one.whole.values())
        assert found.assembled[rank] == (1600 if assembled else 0)
        assert found.peak[rank] <= max(budget, 2 * 1600)
        assert found.keeps_buffers(rank) == (found.kept[rank] <= budget)
        assert (found.room(rank) is None) == (not assembled)
    assert moving.tolist() == [one.moving for one in found.rounds]
    assert not found.rounds[-1].ahead
    for one, following in pairwise(found.rounds):
        assert (one.slot != following.slot) == one.ahead


def test_matrices_that_their_owners_hold_whole_stay_and_take_no_memory():
    layouts = dict.fromkeys("abc", replicated_layout(400, 3))
    found = schedule(layouts, 3, 10_000, shape=(20, 20))
    assert not any(one.moving for one in found.rounds)
    assert found.received.sum() == found.sent.sum() == found.peak.sum() == 0
    assert [found.room(rank) for rank in range(3)] == [None] * 3
    assert all(place == Flat(0, 400) for one in found.rounds_of(0) for place in one.whole.values())
    copied = schedule(layouts, 3, 10_000, shape=(20, 20), copied=["b"])
    assert copied.received.sum() == 0
    assert copied.peak.tolist() == [1600 if copied.owned()[rank] == ["b"] else 0 for rank in range(3)]


def test_a_schedule_without_a_block_is_empty():
    found = schedule({}, 3, 100)
    assert found.rounds == ()
    assert found.peak.tolist() == [0, 0, 0]
    assert found.rounds_of(1) == []


def test_a_rank_of_4096_keeps_its_own_transfers_alone_and_soon():
    begin = time.process_time()
    found = chunked(4096, 900)
    own = found.rounds_of(17)
    assert time.process_time() - begin < 5
    owned = sum(owner == 17 for owner in found.plan.owners.values())
    assert sum(len(one.outgoing) for one in own) == 900 - owned
    assert sum(len(one.incoming) for one in own) <= owned * 4096
    assert found.routes.whole_at("m0000", 17) is None
