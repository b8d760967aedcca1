"""What one rank finds wrong, all hear; what differs is named, wherever in a long line it does."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.collectives import (
    all_gather_checked,
    collective_device,
    first_difference,
    raise_on_all_ranks,
    require_equal,
)
from tests.multirank import run_ranks


def fail_on_rank_1(kind):
    with raise_on_all_ranks(dist.group.WORLD):
        if dist.get_rank() == 1:
            raise kind("no room for fc1")


def check_agreement():
    rank, world = dist.get_rank(), dist.group.WORLD
    begin = time.monotonic()
    with raise_on_all_ranks(world):
        pass
    for kind, heard in ((UserError, UserError), (KeyError, RuntimeError), (MemoryError, RuntimeError)):
        with pytest.raises(kind if rank == 1 else heard, match="no room for fc1") as found:
            fail_on_rank_1(kind)
        assert ("rank 1: " in str(found.value)) == (rank != 1)
    with pytest.raises(UserError, match=r"^the same on all$"), raise_on_all_ranks(world):
        raise UserError("the same on all")
    with pytest.raises(RuntimeError, match="rank 0 has 2 numbers to tell, rank 2 3"):
        all_gather_checked(lambda: range(3 if rank == 2 else 2), world)
    with pytest.raises(ValueError, match="not here"):
        all_gather_checked(lambda: [1][5:] if rank else int("not here"), world)
    assert all_gather_checked(lambda: [rank, 2**62 + rank], world) == [
        [other, 2**62 + other] for other in range(3)
    ]

    # 30 layers with a name too long for a message: the second half differs, on rank 2 alone.
    names = [f"layers.{number}.self_attn_projection" for number in range(30)]
    lines = ["first", f"round 0: {' '.join(names[: 20 if rank == 2 else 30])}", f"last on {rank}"]
    difference = first_difference(lines, world)
    assert "rank 0 has 'round 0: layers.0." in difference
    assert " ... " in difference
    assert "layers.20.self_attn_projection" in difference.partition(", rank 2 ")[0]
    assert "layers.20.self_attn_projection" not in difference.partition(", rank 2 ")[2]
    assert len(difference) < 1000
    assert first_difference(["a"], world) is None
    assert first_difference(["a", "b"][: 1 + (rank > 0)], world) == "rank 0 has 'nothing more', rank 1 'b'"
    deep = first_difference(["a", f"hash {rank}"], world, lambda place: [f"line {place}", "c" * rank])
    assert deep == "rank 0 has '', rank 1 'c'"
    with pytest.raises(UserError, match="settings: rank 0 has 'interval 5', rank 1 'interval 6'; set it"):
        require_equal("settings", [f"interval {5 + (rank == 1)}"], world, "set it", kind=UserError)
    return difference, time.monotonic() - begin < 10


@pytest.mark.ranks
def test_all_ranks_raise_what_one_finds_and_name_what_differs():
    found = run_ranks(check_agreement, 3)
    assert found == [(found[0][0], True)] * 3


def test_without_other_ranks_an_error_is_what_it_was():
    with pytest.raises(KeyError), raise_on_all_ranks(None):
        raise KeyError("x")
    assert first_difference(["a"], None) is None
    assert all_gather_checked(lambda: [3], None) == [[3]]


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
