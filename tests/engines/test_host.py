from __future__ import annotations

import pytest
import torch

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines import host_for
from alphadecay_dist.engines.plain import PlainHost
from tests.engines.tiny import TUNABLE, Uneven, engine_of
from tests.multirank import run_ranks

SHARDED = r"layers\.0\.up is sharded, found \(0,\), expected the whole \(64, 172\).*engine=engine"
ANOTHER = r"layers\.0\.up is not in the optimizer"


def controller(model, optimizer, **options):
    return AlphaDecay(model, optimizer, weight_decay=0.1, **options)


def test_without_a_process_group_it_is_one_process():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    host = host_for(model, optimizer, None, None)
    assert isinstance(host, PlainHost)
    assert host.group is None
    assert host.at_boundary()
    assert host.param_groups() is optimizer.param_groups


def test_a_weight_that_is_not_whole_is_refused():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    model.layers[0]["up"].weight.data = torch.empty(0)
    with pytest.raises(UserError, match=SHARDED):
        controller(model, optimizer)
    model = Uneven(TUNABLE)
    with pytest.raises(UserError, match=ANOTHER):
        controller(model, optimizer)


def check_zero_without_engine():
    engine, model, optimizer = engine_of(3, TUNABLE)
    with pytest.raises(UserError, match=SHARDED):
        controller(model, optimizer)
    assert controller(model, optimizer, engine=engine).step() is not None


@pytest.mark.slow
def test_a_stage_3_weight_is_refused_without_its_engine():
    run_ranks(check_zero_without_engine, 2)
