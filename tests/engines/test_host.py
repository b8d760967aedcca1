from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines import host_for
from alphadecay_dist.engines.replicated import ReplicatedHost
from tests.engines.tiny import TUNABLE, Uneven, engine_of
from tests.multirank import run_ranks

SHARDED = r"layers\.0\.up is sharded, expected a whole weight \(64, 172\).*engine=engine"


def controller(model, optimizer, **options):
    return AlphaDecay(model, optimizer, weight_decay=0.1, **options)


def test_without_a_process_group_it_is_one_process():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    host = host_for(optimizer, None, None)
    assert isinstance(host, ReplicatedHost)
    assert host.group is None
    assert host.at_boundary()
    assert host.param_groups() is optimizer.param_groups


def test_a_weight_that_is_not_whole_is_refused():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    model.layers[0]["up"].weight = nn.Parameter(torch.empty(0))
    with pytest.raises(UserError, match=SHARDED):
        controller(model, optimizer)


def check_zero_without_engine():
    engine, model, optimizer = engine_of(3, TUNABLE)
    with pytest.raises(UserError, match=SHARDED):
        controller(model, optimizer)
    assert controller(model, optimizer, engine=engine).step() is not None


@pytest.mark.slow
def test_a_stage_3_weight_is_refused_without_its_engine():
    run_ranks(check_zero_without_engine, 2)


def check_fsdp():
    model = Uneven(TUNABLE)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    with pytest.raises(UserError, match=SHARDED):
        controller(model, optimizer)


@pytest.mark.slow
def test_an_fsdp_weight_is_refused():
    run_ranks(check_fsdp, 2)
