from __future__ import annotations

import math
import os
import signal
import struct
import time
from dataclasses import dataclass

import deepspeed
import pytest
import torch
import torch.distributed as dist

from alphadecay_dist.engines.replicated import replicated_sources
from alphadecay_dist.engines.zero.host import ZeroHost
from alphadecay_dist.sharding.collectives import RankLostError
from alphadecay_dist.sharding.layout import Block, Flat, Layout, Piece
from alphadecay_dist.sharding.ownership import plan
from tests.engines.tiny import SHAPES, Uneven, backward, engine_of, matrices_of, value_of
from tests.multirank import run_ranks
from tests.sharding.gather import LARGE, SMALL, check_executed, collect, exchange_by, exchange_of, numel

pytestmark = pytest.mark.ranks


@dataclass
class Source:
    """A tensor held in the parts given as (start, stop, holders)."""

    name: str
    whole: torch.Tensor
    parts: list
    rank: int

    @property
    def shape(self):
        return tuple(self.whole.shape)

    @property
    def dtype(self):
        return self.whole.dtype

    @property
    def layout(self):
        return Layout(Piece(holders, Flat(start, stop)) for start, stop, holders in self.parts)

    def local(self):
        mine = [(start, stop) for start, stop, holders in self.parts if self.rank in holders]
        return self.whole.flatten()[slice(*mine[0])] if mine else None


ZERO_SHARDS = [(torch.float32, 0), (torch.float32, 10_000), (torch.bfloat16, 5000)]


def check_all_zero_shards():
    return [check_zero_shards(*case) for case in ZERO_SHARDS]


def check_zero_shards(dtype, threshold):
    engine, model, _ = engine_of(3, SHAPES, dtype, stage3_param_persistence_threshold=threshold)
    persistent = [matrix.parameter.ds_persist for matrix in matrices_of(model)]
    assert any(persistent) == (threshold > 0)
    assert not all(persistent)
    host = ZeroHost(engine)
    rank = dist.get_rank(host.group)
    expected = {m.name: value_of(f"{m.name}.weight", m.shape, dtype) for m in matrices_of(model)}
    for update in range(2):
        sources = host.sources(matrices_of(model), None)
        for budget in (SMALL, 30_000, LARGE):
            exchange, found = exchange_of(sources, budget, host.group)
            largest_share = max(list(found.owners.values()).count(r) for r in set(found.owners.values()))
            assert 1 <= len(found.rounds) <= largest_share
            assert budget != SMALL or len(found.rounds) == largest_share
            assert budget != LARGE or len(found.rounds) == 1
            whole, received = collect(exchange)
            assert set(whole) == {name for name, owner in found.owners.items() if owner == rank}
            assert all(torch.equal(matrix, expected[name]) for name, matrix in whole.items())
            assert all(matrix.dtype == dtype for matrix in whole.values())
            own = [source for source in sources if source.name in whole]
            missing = sum(
                piece.index.numel
                for source in own
                for piece in source.layout.pieces
                if rank not in piece.holders
            )
            assert received == missing * dtype.itemsize
            assert received <= 1.02 * sum(numel(source) for source in own) * dtype.itemsize
            assert exchange.received_by_rank()[rank] == received
        if update == 0:
            backward(engine)
            engine.step()
            before = expected
            expected = {}
            for matrix in matrices_of(model):
                with deepspeed.zero.GatheredParameters(matrix.parameter):
                    expected[matrix.name] = matrix.parameter.detach().clone()
                assert not torch.equal(expected[matrix.name], before[matrix.name])
    return sorted(whole)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_zero_shards_arrive_whole_at_their_owner_and_only_there(world_size):
    for owned in zip(*run_ranks(check_all_zero_shards, world_size), strict=True):
        found = sorted(name for names in owned for name in names)
        assert found == [f"layers.{n}.up" for n in range(len(SHAPES))]


def check_replicated():
    model = Uneven(SHAPES)
    matrices = matrices_of(model)
    exchange, found = exchange_of(replicated_sources(matrices, dist.group.WORLD), SMALL, dist.group.WORLD)
    seen = []
    for name, matrix in exchange.matrices():
        weight = model.get_submodule(name).weight
        assert matrix.data_ptr() == weight.data_ptr()
        assert torch.equal(matrix, weight)
        seen.append(name)
    assert seen == [n for names in found.rounds for n in names if found.owners[n] == dist.get_rank()]
    assert exchange.received_by_rank() == (0,) * dist.get_world_size()
    return len(seen)


@pytest.mark.parametrize("world_size", [1, 3])
def test_replicated_weights_cross_no_network(world_size):
    assert sum(run_ranks(check_replicated, world_size)) == len(SHAPES)


def check_replicas():
    """Two ranks hold the first half, the others the second: replicas, as under HSDP."""
    rank = dist.get_rank()
    wholes = {f"m{i}": value_of(f"m{i}", shape, torch.float32) for i, shape in enumerate(SHAPES)}
    sources = [
        Source(
            name, whole, [(0, whole.numel() // 3, (0, 1)), (whole.numel() // 3, whole.numel(), (2, 3))], rank
        )
        for name, whole in wholes.items()
    ]
    exchange, found = exchange_of(sources, 30_000, dist.group.WORLD, torch.bfloat16)
    for _ in range(2):
        whole, received = collect(exchange)
        assert set(whole) == {name for name, owner in found.owners.items() if owner == rank}
        assert all(torch.equal(matrix, wholes[name].bfloat16()) for name, matrix in whole.items())
    third = sum(matrix.numel() // 3 for matrix in whole.values())
    total = sum(matrix.numel() for matrix in whole.values())
    assert received == 2 * (total - third if rank < 2 else third)


def test_replicated_pieces_come_from_one_holder_and_are_rounded_on_the_way():
    run_ranks(check_replicas, 4)


def check_subgroup():
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return None
    rank = dist.get_rank(group)
    whole = value_of("m", (61, 67), torch.float32)
    sources = [Source(name, whole, [(0, 1000, (0,)), (1000, 4087, (1,))], rank) for name in "ab"]
    exchange, _ = exchange_of(sources, LARGE, group)
    matrices, _ = collect(exchange)
    assert all(torch.equal(matrix, whole) for matrix in matrices.values())
    return sorted(matrices), exchange.received_by_rank()


def test_pieces_name_ranks_of_the_process_group():
    assert run_ranks(check_subgroup, 3) == [None, (["a"], (4 * 3087, 4000)), (["b"], (4 * 3087, 4000))]


ODD = (math.nan, -0.0, 5e-324, math.inf, 1 / 3)


def check_share():
    rank = dist.get_rank()
    sources = replicated_sources(matrices_of(Uneven(SHAPES)), dist.group.WORLD)
    exchange, found = exchange_of(sources, SMALL, dist.group.WORLD)
    values = {
        name: (ODD[number], number + math.pi)
        for number, name in enumerate(sorted(found.owners))
        if found.owners[name] == rank
    }
    shared = exchange.share(values, dict.fromkeys(found.owners, 2))
    return {name: struct.pack("2d", *numbers) for name, numbers in shared.items()}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shared_numbers_are_bit_equal_on_every_rank(world_size):
    expected = {f"layers.{n}.up": struct.pack("2d", ODD[n], n + math.pi) for n in range(len(SHAPES))}
    assert run_ranks(check_share, world_size) == [expected] * world_size


def check_disagreement(kind):
    """Rank 1 differs from the others; what each rank raises, and how soon."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    odd = kind if rank == 1 else None
    shape = (61, 66) if odd == "shape" else (61, 67)
    whole = value_of("m", shape, torch.float32)
    half = whole.numel() // 2
    parts = [(0, half, (0,)), (half, whole.numel(), (1,))]
    if odd == "gap" or kind == "gap on all":
        parts[1] = (half + 1, whole.numel(), (1,))
    if odd == "holder":
        parts[1] = (half, whole.numel(), ())
    names = "abcd"[:-1] if odd == "fewer" else "abcd"
    sources = [Source(name, whole, parts, rank) for name in names]
    begin = time.monotonic()
    try:
        exchange_of(
            sources,
            SMALL if odd == "budget" else LARGE,
            dist.group.WORLD,
            torch.bfloat16 if odd == "dtype" else torch.float32,
        )
    except (RuntimeError, ValueError) as error:
        return type(error).__name__, str(error), time.monotonic() - begin < 10
    return world_size


DIFFERENCES = {
    "shape": ("a: shape (61, 67)", "a: shape (61, 66)"),
    "budget": ("round 0: a b c d", "round 0: a b c'"),
    "dtype": ("weights travel as torch.float32", "weights travel as torch.bfloat16"),
    "fewer": ("d: shape (61, 67)", "Block(name='a'"),
    "gap": ("a: shape (61, 67), piece 1", "hold Flat(start=2044"),
    "holder": ("piece 1: ranks (1,)", "piece 1: ranks ()"),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_ranks_that_plan_differently_all_raise(kind):
    found = run_ranks(check_disagreement, 3, kind)
    rank_0, rank_1 = DIFFERENCES[kind]
    for name, message, prompt in found:
        assert name == "RuntimeError"
        assert "planned the gathering of weights differently: rank 0 has " in message
        mine, _, other = message.partition(", rank 1 ")
        assert rank_0 in mine
        assert rank_1 in other
        assert prompt
    assert len({message for _, message, _ in found}) == 1


def test_sources_with_a_gap_are_refused():
    for name, message, _ in run_ranks(check_disagreement, 2, "gap on all"):
        assert name == "ValueError"
        assert "a: the pieces have a gap" in message


def check_short_piece():
    rank = dist.get_rank()
    whole = value_of("m", (61, 67), torch.float32)
    sources = [Source("m", whole, [(0, 2000, (0,)), (2000, 4087, (1,))], rank)]
    exchange, _ = exchange_of(sources, LARGE, dist.group.WORLD)
    sources[0].parts = [(0, 2000, (0,)), (2000, 4000, (1,))]
    with pytest.raises(RuntimeError, match="m: rank 1 holds 2000 elements, its layout says 2087"):
        exchange.matrices()
    sources[0].parts = [(0, 2000, (0,)), (2000, 4087, (1,))]
    with pytest.raises(RuntimeError, match="m: rank 1 holds 2000 elements, its layout says 2087"):
        exchange_of([Short(sources[0])], LARGE, dist.group.WORLD)


class Short:
    """A source of which rank 1 holds less than it says."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def local(self):
        local = self._source.local()
        return None if local is None else local[:2000]


def test_a_piece_that_is_shorter_than_the_layout_says_is_refused_by_name_on_every_rank():
    run_ranks(check_short_piece, 3)


def check_blocks():
    """A stack of 5 matrices held in pieces that end inside of them; each matrix has an owner of its own."""
    rank = dist.get_rank()
    stack = value_of("stack", (5 * 61, 67), torch.float32).view(5, 61, 67)
    size, total = 61 * 67, stack.numel()
    parts = [(0, 700, (0,)), (700, 3 * size + 11, (1,)), (3 * size + 11, total, (2,))]
    source = Source("stack", stack, parts, rank)
    blocks = [Block(f"stack.{i}", "stack", Flat(i * size, (i + 1) * size), (61, 67)) for i in range(5)]
    costs = dict.fromkeys((block.name for block in blocks), 1.0)
    for budget in (SMALL, LARGE):
        found = plan(costs, dict.fromkeys(costs, 4 * size), 3, budget)
        exchange = exchange_by(found, [source], blocks, torch.float32, dist.group.WORLD)
        matrices, received = collect(exchange)
        check_executed(exchange, dist.group.WORLD)
        assert set(matrices) == {name for name, owner in found.owners.items() if owner == rank}
        assert all(torch.equal(matrix, stack[int(name[-1])]) for name, matrix in matrices.items())
    here = [Flat(start, stop) for start, stop, (holder,) in parts if holder == rank]
    own = [block for block in blocks if found.owners[block.name] == rank]
    held = sum((part.numel if (part := piece.within(block.index)) else 0) for piece in here for block in own)
    assert received == 4 * (len(own) * size - held)
    return len(own)


def test_matrices_of_a_stack_go_to_owners_of_their_own():
    assert sorted(run_ranks(check_blocks, 3)) == [1, 2, 2]


def check_killed():
    rank = dist.get_rank()
    whole = value_of("m", (61, 67), torch.float32)
    parts = [(0, 1000, (0,)), (1000, 3000, (1,)), (3000, 4087, (2,))]
    exchange, _ = exchange_of([Source(name, whole, parts, rank) for name in "abc"], LARGE, dist.group.WORLD)
    gathering = exchange.matrices()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RankLostError, match=r"weights of . and others did not arrive: another rank died"):
        list(gathering)
    assert time.monotonic() - begin < 30


@pytest.mark.kills
def test_a_killed_rank_ends_the_others_with_a_message():
    with pytest.raises(AssertionError) as raised:
        run_ranks(check_killed, 3)
    assert "rank 1" in str(raised.value)
    assert "rank 0" not in str(raised.value).partition("rank 0 printed")[0]
    assert "rank 2" not in str(raised.value)


def check_killed_in_share():
    """Replicated weights move nothing: the first to notice is the one all-gather."""
    sources = replicated_sources(matrices_of(Uneven(SHAPES)), dist.group.WORLD)
    exchange, found = exchange_of(sources, SMALL, dist.group.WORLD)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankLostError, match="spectra of the other ranks did not arrive: another rank died"):
        exchange.share(dict.fromkeys(found.owners, (0.0,)), dict.fromkeys(found.owners, 1))


@pytest.mark.kills
def test_a_rank_that_is_killed_where_no_weight_moves_ends_the_others_with_a_message():
    with pytest.raises(AssertionError) as raised:
        run_ranks(check_killed_in_share, 2)
    assert "rank 1: died" in str(raised.value)
    assert "rank 0" not in str(raised.value).partition("rank 0 printed")[0]
