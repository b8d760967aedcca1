"""What fails on one rank in a step of Muon is heard on all, in one line, before any weight has changed."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist.optimizers import muon, places
from alphadecay_dist.optimizers.muon import ShardedMuon
from alphadecay_dist.sharding.buffers import Buffers
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.returns import Returns
from tests.multirank import run_ranks
from tests.optimizers.test_muon import TIGHT, give_gradients, sharded

# What the last rank has no memory for, and what all ranks say of it.
FAULTS = {
    "momentum": (muon, "_gradient", r"RunError: rank 1: no memory for the updates of Muon \(MemoryError: no"),
    "products": (
        places,
        "orthogonalized",
        r"RunError: rank 1: Muon: 0\.\d and others of its round could not be orthogonalised: MemoryError: no "
        "room; give a smaller memory_budget, or more ranks",
    ),
    "matrix": (Exchange, "_put_together", r"RunError: rank 1: Muon: 0\.\d could not be put together, see"),
    "round": (Buffers, "_allocate", r"RunError: rank 1: no memory for weights of 0\.\d and others \(Memory"),
    "way back": (Returns, "_empty", "RunError: rank 1: no memory for what owners made of their matrices"),
}


def out_of_memory(*args):
    raise MemoryError("no room")


def check_fault(fault):
    model = sharded(1)
    optimizer = ShardedMuon(model.parameters(), lr=0.1, memory_budget=TIGHT)
    give_gradients(model, 1)
    optimizer.step()
    before = [own.detach().to_local().clone() for own in model.parameters()]
    owner, name, words = FAULTS[fault]
    kept, fails = getattr(owner, name), dist.get_rank() == 1
    if fails:
        setattr(owner, name, out_of_memory)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (its text is looked at below)
        optimizer.step()
    setattr(owner, name, kept)
    found = f"{type(caught.value).__name__}: {caught.value}"
    if not fails:
        assert re.match(words, found), found
        assert "\n" not in found
    for own, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(own.to_local(), weight)
    optimizer.step()  # nobody is a collective ahead
    assert all(own.full_tensor().isfinite().all() for own in model.parameters())


@pytest.mark.ranks
@pytest.mark.parametrize("fault", FAULTS)
def test_all_ranks_hear_of_what_fails_on_one(fault):
    run_ranks(check_fault, 2, fault, timeout=60)
