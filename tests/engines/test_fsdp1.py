"""FSDP1's flat parameters arrive whole at their owners; what engines/fsdp1.py takes for granted of torch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.fsdp1 import FlatParameterSource, flat_places
from alphadecay_dist.engines.plain import PlainHost
from tests.engines.tiny import SHAPES, TUNABLE, filled, groups_of, matrices_of
from tests.multirank import run_ranks
from tests.sharding.gather import check_gathering

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*FSDP.*"),
]


def wrapped(model, strategy="FULL_SHARD", *, each_linear=True, use_orig_params=True):
    size = dist.get_world_size()
    options = {}
    if strategy == "HYBRID_SHARD":
        options["device_mesh"] = dist.init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("r", "s"))
    return FullyShardedDataParallel(
        model,
        sharding_strategy=ShardingStrategy[strategy],
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}) if each_linear else None,
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
        **options,
    )


def check_wrapped(strategy, each_linear):
    model, values = filled(SHAPES)
    model = wrapped(model, strategy, each_linear=each_linear)
    optimizer = torch.optim.SGD(groups_of(model), lr=0.1)
    host = PlainHost(model, optimizer, None)
    sources = host.sources(matrices_of(model), None)
    assert all(isinstance(source, FlatParameterSource) for source in sources)
    owned = check_gathering(sources, values, dist.group.WORLD)
    loss = model(torch.ones(2, 172))  # some strategies leave the parameters unsharded here
    check_gathering(sources, values, dist.group.WORLD)
    loss.backward()
    optimizer.step()
    with FullyShardedDataParallel.summon_full_params(model):
        updated = {m.name: m.parameter.detach().clone().view(m.shape) for m in matrices_of(model)}
    assert not any(torch.equal(updated[name], value) for name, value in values.items())
    check_gathering(sources, updated, dist.group.WORLD)
    return owned


CASES = [("FULL_SHARD", size) for size in (1, 2, 3, 4)]
CASES += [("SHARD_GRAD_OP", 3), ("NO_SHARD", 2), ("HYBRID_SHARD", 2), ("HYBRID_SHARD", 4)]


@pytest.mark.parametrize("each_linear", [True, False])
@pytest.mark.parametrize(("strategy", "world_size"), CASES)
def test_what_fsdp1_holds_arrives_whole(strategy, world_size, each_linear):
    owned = run_ranks(check_wrapped, world_size, strategy, each_linear)
    assert sum(owned) == len(SHAPES)
    assert min(owned) > 0


def check_decays(strategy):
    """The decays of one process, written where the optimizer reads them."""
    whole, _ = filled(TUNABLE)
    alone = torch.optim.SGD(param_groups(whole, weight_decay=0.1), lr=0.1)
    own = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    expected = AlphaDecay(whole, alone, process_group=own, weight_decay=0.1).refresh().modules
    model = wrapped(filled(TUNABLE)[0], strategy)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    found = AlphaDecay(model, optimizer, weight_decay=0.1).refresh().modules
    assert list(found) == list(expected)
    for name, module in expected.items():
        assert found[name].alpha == pytest.approx(module.alpha, abs=1e-6)
        assert found[name].weight_decay == pytest.approx(module.weight_decay, abs=1e-6)
    written = {group["module"]: group["weight_decay"] for group in optimizer.param_groups}
    assert {name: written[name] for name in found} == {n: m.weight_decay for n, m in found.items()}


@pytest.mark.parametrize(("strategy", "world_size"), [("FULL_SHARD", 3), ("HYBRID_SHARD", 4)])
def test_decays_are_those_of_one_process(strategy, world_size):
    run_ranks(check_decays, world_size, strategy)


def check_refused():
    model = wrapped(filled(TUNABLE)[0], use_orig_params=False)
    with pytest.raises(UserError, match="use_orig_params=False"):
        flat_places(model)


def test_flat_parameters_of_the_old_kind_are_refused():
    run_ranks(check_refused, 2)
