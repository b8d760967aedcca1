"""FSDP1's flat parameters arrive whole at their owners; what engines/native/fsdp1.py expects of torch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.native.fsdp1 import FlatParameterSource
from alphadecay_dist.engines.native.host import PlainHost
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import SHAPES, TUNABLE, filled, groups_of, matrices_of
from tests.multirank import run_ranks
from tests.sharding.gather import check_gathering

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.filterwarnings("ignore:.*FSDP.*"),
]


def check_cases(strategies):
    """One flat parameter a layer, and one for all."""
    return [check_wrapped(strategy, each) for strategy in strategies for each in (True, False)]


def check_wrapped(strategy, each_linear):
    model, values = filled(SHAPES)
    model = wrapped(model, strategy, each_linear=each_linear)
    optimizer = torch.optim.SGD(groups_of(model), lr=0.1)
    host = PlainHost(model, [optimizer], None)
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


CASES = [
    (1, ["FULL_SHARD"]),
    (2, ["NO_SHARD", "HYBRID_SHARD"]),
    (3, ["FULL_SHARD", "SHARD_GRAD_OP"]),
    (4, ["FULL_SHARD", "HYBRID_SHARD"]),
    pytest.param(2, ["FULL_SHARD"], marks=pytest.mark.long),
]


@pytest.mark.parametrize(("world_size", "strategies"), CASES)
def test_what_fsdp1_holds_arrives_whole(world_size, strategies):
    for owned in zip(*run_ranks(check_cases, world_size, strategies), strict=True):
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
    flat = wrapped(filled(TUNABLE)[0], use_orig_params=False)
    with pytest.raises(UserError, match="use_orig_params=False"):
        param_groups(flat, weight_decay=0.1)
    model, _ = filled(TUNABLE)
    groups = param_groups(model, weight_decay=0.1)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(UserError, match="use_orig_params=False"):
        AlphaDecay(wrapped(model, use_orig_params=False), optimizer, weight_decay=0.1)


def check_group_that_lacks_ranks():
    model = wrapped(filled(TUNABLE)[0])
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    own = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    with pytest.raises(UserError, match=r"layers.0.up: FSDP shards it over ranks .*process_group"):
        AlphaDecay(model, optimizer, process_group=own, weight_decay=0.1)


def check_contract():
    """The private names of engines/native/fsdp1.py, one a line."""
    model, values = filled(SHAPES)
    model = wrapped(model, each_linear=False)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    (handle,) = {module._handle for module in FullyShardedDataParallel.fsdp_modules(model)}
    flat = handle.flat_param
    names = [matrix.name for matrix in matrices_of(model)]
    total = sum(value.numel() for value in values.values())
    assert handle.uses_sharded_strategy is True, "handle.uses_sharded_strategy"
    assert dist.get_process_group_ranks(handle.process_group) == list(range(world_size)), "process_group"
    chunk = flat._sharded_size.numel()
    assert total <= chunk * world_size < total + 64 * world_size, "_sharded_size: equal parts, padded"
    offsets = handle._get_flat_param_offsets()
    assert len(offsets) == len(flat._is_padding_mask), "_is_padding_mask: one an offset"
    found = [own for own, padding in zip(offsets, flat._is_padding_mask, strict=True) if not padding]
    assert [last + 1 - start for start, last in found] == [values[name].numel() for name in names], "offsets"
    own = [id(matrix.parameter) for matrix in matrices_of(model)]
    assert [id(parameter) for parameter in flat._params] == own, "_params: the optimizer's own"
    model(torch.ones(2, 172))
    whole = torch.full((chunk * world_size,), torch.nan)
    for (start, last), name in zip(found, names, strict=True):
        whole[start : last + 1] = values[name].flatten()
    mine = whole[rank * chunk : (rank + 1) * chunk]
    equal = (flat._local_shard == mine) | mine.isnan()
    assert equal.all(), "_local_shard: this rank's range"
    unsharded = wrapped(filled(SHAPES)[0], "NO_SHARD", each_linear=False)
    assert unsharded._handle.uses_sharded_strategy is False, "handle.uses_sharded_strategy of NO_SHARD"


def check_all():
    check_refused()
    check_group_that_lacks_ranks()
    check_contract()


def test_refusals_and_what_is_taken_for_granted_of_torch():
    run_ranks(check_all, 2)
