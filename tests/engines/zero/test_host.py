from __future__ import annotations

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param

from alphadecay_dist import AlphaDecay, UserError
from alphadecay_dist.engines.zero.host import ZeroHost
from alphadecay_dist.sharding.layout import flat_chunks
from tests.engines.tiny import SHAPES, TUNABLE, backward, engine_of, matrices_of
from tests.multirank import run_ranks
from tests.sharding.gather import check_gathering


@pytest.mark.parametrize("elements", [1, 2, 3, 15, 43 * 127, 61 * 67, 64 * 172])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 64])
def test_ranges_of_stage_3_are_chunks_that_cover_the_weight(elements, world_size):
    ranges = flat_chunks(elements, world_size)
    chunk = -(-elements // world_size)
    assert [part.start for part in ranges] == [min(rank * chunk, elements) for rank in range(world_size)]
    assert [part.stop for part in ranges] == [part.start for part in ranges[1:]] + [elements]
    assert all(0 <= part.numel <= chunk for part in ranges)


def check_all_masters():
    return [check_masters(stage) for stage in (1, 2, 3)]


def check_masters(stage):
    engine, model, _ = engine_of(stage, SHAPES, torch.bfloat16)
    host = ZeroHost(engine)
    sources = host.sources(matrices_of(model), torch.float32)
    for update in range(2):
        masters = {
            matrix.name: safe_get_full_fp32_param(matrix.parameter).view(matrix.shape).clone()
            for matrix in matrices_of(model)
        }
        assert all(source.dtype == torch.float32 for source in sources)
        owned = check_gathering(sources, masters, host.group)
        if update == 0:
            backward(engine)
            engine.step()
    rounded = [bool((master.bfloat16().float() != master).any()) for master in masters.values()]
    assert all(rounded), "after an update the master is finer than bf16"
    assert host.sources(matrices_of(model), None)[0].dtype == torch.bfloat16
    return owned


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_fp32_masters_arrive_whole_where_they_are_asked_for(world_size):
    for owned in zip(*run_ranks(check_all_masters, world_size), strict=True):
        assert sum(owned) == len(SHAPES)


def check_types():
    """Alphas of the masters, of the bf16 weights, and at stage 0."""
    engine, model, optimizer = engine_of(2, TUNABLE, torch.bfloat16)
    backward(engine)
    engine.step()
    found = [
        AlphaDecay(model, optimizer, engine=engine, weight_decay=0.1, dtype=dtype).refresh()
        for dtype in (None, torch.bfloat16, torch.float32)
    ]
    alphas = [[module.alpha for module in refresh.modules.values()] for refresh in found]
    assert alphas[0] == alphas[1]
    assert alphas[2] == pytest.approx(alphas[0], abs=1e-2)
    assert alphas[2] != pytest.approx(alphas[0], abs=1e-6)
    assert found[0].bytes_received == (0, 0)
    assert min(found[2].bytes_received) > 0


@pytest.mark.ranks
def test_the_type_asked_for_is_what_is_analysed():
    run_ranks(check_types, 2)


def check_stage_0():
    engine, model, _ = engine_of(0, TUNABLE)
    model.bfloat16()
    with pytest.raises(UserError, match="dtype: found float32 for bf16 weights at ZeRO stage 0"):
        ZeroHost(engine).sources(matrices_of(model), torch.float32)


@pytest.mark.ranks
def test_stage_0_has_no_masters_to_read():
    run_ranks(check_stage_0, 1)
