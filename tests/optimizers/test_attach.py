"""attach() on Muon that someone else made, in a list or as one optimizer, whole and in pieces."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import AlphaDecay, attach
from alphadecay_dist.optimizers.muon import ShardedMuon
from alphadecay_dist.optimizers.pair import MuonWithAdamW
from tests.models import Blocks
from tests.multirank import run_ranks
from tests.optimizers.test_muon import RATE, give_same

LATE = 2  # updates before it


def trained(kind, paired, shards):
    """Whole weights and decays of a run whose groups were split after some updates."""
    torch.manual_seed(0)
    model = Blocks()
    if shards:
        fully_shard(model)
    sides = [[own for own in model.parameters() if (own.ndim == 2) == matrix] for matrix in (True, False)]
    optimizers = [kind(sides[0], lr=RATE, weight_decay=1.0), torch.optim.AdamW(sides[1], weight_decay=1.0)]
    optimizers = [MuonWithAdamW(*optimizers)] if paired else optimizers
    decay = None
    for update in range(4):
        give_same(model, model, update, shards)
        if update == LATE:
            attach(model, optimizers)
            decay = AlphaDecay(model, optimizers, weight_decay=1.0, interval=1, min_ratio=0.5, max_ratio=3)
        if decay is not None:
            decay.step()
        for optimizer in optimizers:
            optimizer.step()
    weights = [own.full_tensor() if shards else own.detach() for own in model.parameters()]
    return weights, {name: module.weight_decay for name, module in decay.modules.items()}


def check_attached():
    weights, decays = trained(torch.optim.Muon, False, False)
    assert len(set(decays.values())) > 1
    for kind, paired, shards in (
        (ShardedMuon, False, True),
        (ShardedMuon, True, True),
        (torch.optim.Muon, True, False),
    ):
        found, own = trained(kind, paired, shards)
        assert own == pytest.approx(decays, rel=1e-6)
        for one, other in zip(found, weights, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.ranks
def test_groups_may_be_split_after_the_first_steps():
    run_ranks(check_attached, 2)
