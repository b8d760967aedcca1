"""What one rank finds wrong, all hear; what differs is named, wherever in a long line it does."""

from __future__ import annotations

import os
import pickle
import signal
import time

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist.errors import RunError, UserError
from alphadecay_dist.sharding.collectives import Collectives, RankLostError, collective_device
from tests.multirank import run_ranks


def world():
    return Collectives(dist.group.WORLD)


def raise_here(fault):
    raise fault


def fail_on(ranks, *faults):
    """Ranks 0, 1, ... fail with these; None does not."""
    with ranks.raise_on_all_ranks():
        if faults[ranks.rank] is not None:
            raise_here(faults[ranks.rank])


def check_errors():
    ranks, begin = world(), time.monotonic()
    with ranks.raise_on_all_ranks():
        pass
    for own, kind in (
        (UserError, UserError),
        (RunError, RunError),
        (UnicodeError, ValueError),
        (torch.OutOfMemoryError, RuntimeError),
        (KeyError, RuntimeError),
        (MemoryError, RuntimeError),
    ):
        with pytest.raises(own if ranks.rank == 1 else kind, match="no room for fc1") as found:
            fail_on(ranks, None, own("no room for fc1"), None)
        assert type(found.value) is (own if ranks.rank == 1 else kind)
        assert ("rank 1: " in str(found.value)) == (ranks.rank != 1)
    with pytest.raises(UserError, match=r"^the same on all$"):
        fail_on(ranks, *[UserError("the same on all")] * 3)
    with pytest.raises(ValueError, match=r"^(rank 1: )?the first$") as found:
        fail_on(ranks, None, ValueError("the first"), RunError("the second"))
    assert str(found.value.__cause__) == ("the second" if ranks.rank == 2 else "None")
    with pytest.raises(RuntimeError, match=r"^(rank 1: )?x+$") as found:
        fail_on(ranks, None, RuntimeError("x" * 10**6), None)
    assert ranks.rank == 1 or len(str(found.value)) < 3000
    return time.monotonic() - begin < 10


@pytest.mark.ranks
def test_all_ranks_raise_what_the_lowest_that_failed_did():
    assert run_ranks(check_errors, 3) == [True] * 3


def check_data():
    """On a group that rank 0 of the job is not in, and on all ranks."""
    pair = dist.new_group([1, 2])
    ranks = world()
    everyone = ranks.gather({"rank": ranks.rank, "text": "x" * ranks.rank})
    assert everyone == [{"rank": rank, "text": "x" * rank} for rank in range(3)]
    assert ranks.broadcast(f"of {ranks.rank}") == "of 0"
    assert ranks.from_main(lambda: 5 if ranks.is_main else 1 / 0) == 5
    with pytest.raises(RunError, match=r"^full$" if ranks.is_main else r"^rank 0: full$"):
        ranks.from_main(lambda: raise_here(RunError("full")))
    assert ranks.sum(ranks.rank, 0.5, torch.tensor(1 / 3, dtype=torch.float64)) == [3, 1.5, 1.0]
    assert ranks.sum_on_device(1).dtype == torch.float64
    with pytest.raises(RuntimeError, match="rank 0 has 2 numbers to tell, rank 2 3"):
        ranks.all_gather_checked(range(3 if ranks.rank == 2 else 2))
    big = 2**62 + ranks.rank
    assert ranks.all_gather_checked([ranks.rank, big]) == [[r, 2**62 + r] for r in range(3)]
    if ranks.rank > 0:
        ranks = Collectives(pair)
        assert (ranks.rank, ranks.world_size) == (dist.get_rank() - 1, 2)
        assert ranks.broadcast(dist.get_rank()) == 1
        assert ranks.gather(dist.get_rank()) == [1, 2]
        assert ranks.sum(1) == [2]
        with pytest.raises(UserError, match=r"^a: rank 0 has '1', rank 1 '2'; b$"):
            ranks.require_equal("a", [str(dist.get_rank())], "b", kind=UserError)
    with torch.device("meta"):  # as a user's script may build its model
        assert world().from_main(lambda: "text") == "text"
        assert world().gather(3) == [3] * 3
        assert world().sum(1) == [3]


@pytest.mark.ranks
def test_plain_data_and_sums_reach_every_rank_of_the_group():
    run_ranks(check_data, 3)


def difference(ranks, lines, details=None):
    """What is told of lines that differ; None where they do not."""
    try:
        ranks.require_equal("lines", lines, "equal ones", details=details)
    except RuntimeError as error:
        text = str(error)
        assert text.startswith("lines: ")
        assert text.endswith("; equal ones")
        return text.removeprefix("lines: ").removesuffix("; equal ones")
    return None


def check_differences():
    ranks, begin = world(), time.monotonic()
    rank = ranks.rank
    # 30 layers with a name too long for a message: the second half differs, on rank 2 alone.
    names = [f"layers.{number}.self_attn_projection" for number in range(30)]
    lines = ["first", f"round 0: {' '.join(names[: 20 if rank == 2 else 30])}", f"last on {rank}"]
    told = [difference(ranks, lines)]
    assert "rank 0 has 'round 0: layers.0." in told[0]
    assert " ... " in told[0]
    assert "layers.20.self_attn_projection" in told[0].partition(", rank 2 ")[0]
    assert "layers.20.self_attn_projection" not in told[0].partition(", rank 2 ")[2]
    assert len(told[0]) < 1000
    assert difference(ranks, []) is None
    assert difference(ranks, ["a"]) is None
    assert difference(ranks, ["a", "b"][: 1 + (rank > 0)]) == "rank 0 has 'nothing more', rank 1 'b'"
    assert difference(ranks, ["a\nb"] if rank else ["a", "b"]) == "rank 0 has 'a', rank 1 'a\\nb'"
    assert difference(ranks, [f"is {rank == 2}"]) == "rank 0 has 'is False', rank 2 'is True'"
    # Rank 1 differs in a later line than rank 2: the first place counts.
    own = [["a", "b"], ["a", "c"], ["d", "b"]][rank]
    assert difference(ranks, own) == "rank 0 has 'a', rank 2 'd'"
    deep = difference(ranks, ["a", f"hash {rank}"], lambda place: [f"line {place}", "c" * rank])
    assert deep == "rank 0 has '', rank 1 'c'"
    shorter = difference(ranks, ["a", "b"][: 1 + (rank == 0)], lambda place: [f"line {place}"])
    assert shorter == "rank 0 has 'line 1', rank 1 'nothing more'"
    # Where the lines behind are equal, the ones before are told.
    assert difference(ranks, [str(rank)], lambda _: ["equal"]) == "rank 0 has '0', rank 1 '1'"

    def behind(_):
        return raise_here(ValueError("no details")) if rank == 1 else ["line"]

    with pytest.raises(ValueError, match=r"^(rank 1: )?no details$"):
        ranks.require_equal("", [str(rank)], "", details=behind)
    with pytest.raises(UserError, match="settings: rank 0 has 'interval 5', rank 1 'interval 6'; set it"):
        ranks.require_equal("settings", [f"interval {5 + (rank == 1)}"], "set it", kind=UserError)
    told.append(difference(ranks, [chr(0x4E00 + rank) * 10**6]))
    assert len(told[1]) < 1000
    assert ranks.gather(rank) == [0, 1, 2]  # nothing is left over
    return told, time.monotonic() - begin < 10


@pytest.mark.ranks
def test_the_first_line_that_differs_is_named_alike_on_all_ranks():
    found = run_ranks(check_differences, 3)
    assert found == [(found[0][0], True)] * 3


def check_bytes():
    """Bytes that a rank gives into collectives of objects while a megabyte of lines is compared."""
    gather, moved = dist.all_gather_object, []

    def counted(everyone, value, **options):
        moved.append(len(pickle.dumps(value)))
        gather(everyone, value, **options)

    dist.all_gather_object = counted
    dist.broadcast_object_list = None  # not called
    world().require_equal("lines", ["x" * 1000] * 1000, "equal ones")
    return moved


@pytest.mark.ranks
def test_nothing_but_a_hash_moves_where_lines_are_equal():
    for (moved,) in run_ranks(check_bytes, 2):
        assert moved < 200


def check_killed(call):
    ranks = world()
    ranks.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankLostError, match="did not arrive: another rank died"):
        getattr(ranks, call)(0)
    with pytest.raises(RankLostError), ranks.raise_on_all_ranks():
        raise RankLostError("heard of it already")  # without another collective, which would hang


@pytest.mark.ranks
@pytest.mark.parametrize("call", ["gather", "broadcast", "sum"])
def test_a_killed_rank_ends_the_others_with_a_message(call):
    with pytest.raises(AssertionError) as raised:
        run_ranks(check_killed, 3, call)
    assert "rank 1: died" in str(raised.value)
    before = str(raised.value).partition("rank 0 printed")[0]
    assert "rank 0" not in before
    assert "rank 2" not in before


def test_without_other_ranks_all_is_as_it_is_here():
    ranks = Collectives(None)
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
    fault = KeyError("x")
    with pytest.raises(KeyError) as found, ranks.raise_on_all_ranks():
        raise fault
    assert found.value is fault
    ranks.require_equal("lines", ["a"], "none")
    assert ranks.all_gather_checked([3]) == [[3]]
    assert ranks.from_main(lambda: 5) == ranks.broadcast(5) == 5
    assert ranks.gather(7) == [7]
    assert ranks.sum(1, 2.5) == [1.0, 2.5]
    ranks.barrier()


@pytest.mark.parametrize(
    ("backend", "stored", "expected"),
    [
        ("nccl", "cpu", "cuda"),
        ("nccl", "cuda", "cuda"),
        ("cpu:gloo,cuda:nccl", "cuda", "cuda"),
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("gloo", "cpu", "cpu"),
        ("gloo", "cuda", "cpu"),
    ],
)
def test_weights_travel_where_they_lie_if_the_group_serves_that(monkeypatch, backend, stored, expected):
    # What torch makes of the name that init_process_group() is given.
    config = str(dist.distributed_c10d.BackendConfig(dist.Backend(backend)))
    monkeypatch.setattr(dist, "get_backend_config", lambda group: config)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    device = collective_device(object(), stored)
    assert device == (torch.device("cuda", 3) if expected == "cuda" else torch.device("cpu"))
