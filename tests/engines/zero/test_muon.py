"""What zero/state.py and zero/host.py take for granted of DeepSpeed's Muon."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.engines.zero.state import MOMENTUM
from alphadecay_dist.optimizers.settings import MuonSettings
from alphadecay_dist.optimizers.zero import for_zero
from tests.engines.tiny import TUNABLE, Uneven, engine_of, value_of
from tests.multirank import run_ranks

pytestmark = pytest.mark.ranks

KEPT = 0.9


def muon(model, groups):
    return for_zero(model, groups, MuonSettings(lr=1e-2, momentum=KEPT))


def one_group(model):
    return param_groups(model, weight_decay=0.1, apply="premultiply")


def muon_engine(stage, **options):
    options |= {"reduce_scatter": False} if stage == 3 else {}
    engine, model, _ = engine_of(stage, TUNABLE, groups=one_group, optimizer_for=muon, **options)
    return engine, model


def gradients_of(x):
    """Whole ones, by the parameters' names."""
    model = Uneven(TUNABLE)
    for name, own in model.named_parameters():
        own.data.copy_(value_of(name, tuple(own.shape), torch.float32))
    model(x).backward()
    return {name: own.grad for name, own in model.named_parameters()}


def check_momentum(stage):
    engine, model = muon_engine(stage)
    zero, names = engine.optimizer, {own: name for name, own in model.named_parameters()}
    x = torch.randn(1, 172, generator=torch.Generator().manual_seed(0))
    expected = {name: (1 - KEPT) * gradient.flatten() for name, gradient in gradients_of(x).items()}
    with torch.compiler.set_stance("force_eager"):
        engine.backward(engine(x))
        engine.step()
    if stage == 3:
        (flat,) = [own for own in zero.fp32_partitioned_groups_flat if MOMENTUM in zero.optimizer.state[own]]
        row = zero.optimizer.state[flat][MOMENTUM]
        assert row.shape == flat.shape, "momentum: as the other moments"
        assert row.dtype == zero.communication_data_type, "momentum: communication_data_type"
        return len(TUNABLE)
    ((number, flat),) = [
        (number, own)
        for number, own in enumerate(zero.single_partition_of_fp32_groups)
        if MOMENTUM in zero.optimizer.state[own]
    ]
    parameters, row = zero.params_in_partition[number], zero.optimizer.state[flat][MOMENTUM]
    assert row.numel() == sum(own.numel() for own in parameters), "momentum: whole matrices, no padding"
    ends = itertools.accumulate((own.numel() for own in parameters), initial=0)
    for own, start in zip(parameters, ends, strict=False):
        found = row.narrow(0, start, own.numel())
        torch.testing.assert_close(
            found, expected[names[own]], rtol=1e-4, atol=1e-9, msg="params_in_partition: order of momentum"
        )
    begin = dist.get_rank() * flat.numel()
    rows = itertools.accumulate((own.numel() for own in zero.round_robin_bit16_groups[number]), initial=0)
    reach = [
        own
        for own, start in zip(zero.round_robin_bit16_groups[number], rows, strict=False)
        if start < begin + flat.numel() and begin < start + own.numel()
    ]
    assert [names[own] for own in parameters] == [names[own] for own in reach], "params_in_partition"
    return len(parameters)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_momentum_lies_where_the_state_reads_it(stage):
    held = run_ranks(check_momentum, 2, stage)
    assert sum(held) >= len(TUNABLE), "every matrix is in a partition"


def check_clipping():
    found = []
    for clip in (0.0, 1.0):
        engine, model = muon_engine(1, clip=clip)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            AlphaDecay(model, engine.optimizer, engine=engine, weight_decay=0.1, apply="premultiply")
        found.append([str(own.message) for own in caught if "gradient_clipping" in str(own.message)])
    return found


def test_rank_0_warns_of_clipping_what_was_orthogonalised():
    (without, (line,)), others = run_ranks(check_clipping, 2)
    assert without == []
    assert line.startswith("DeepSpeed config: gradient_clipping is 1.0, which with DeepSpeed's Muon clips")
    assert others == [[], []]
