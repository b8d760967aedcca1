"""What alphadecay_dist/engines/zero/host.py takes for granted of DeepSpeed, attribute by attribute."""

from __future__ import annotations

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

from alphadecay_dist import UserError
from alphadecay_dist.compat import manages_accumulation, super_offload
from alphadecay_dist.engines.zero.host import refuse_unservable
from tests.engines.tiny import SHAPES, backward, engine_of, matrices_of, value_of
from tests.multirank import run_ranks

pytestmark = pytest.mark.ranks

STAGES = [0, 1, 2, 3]


def check_engine(stage, dtype):
    engine, model, _ = engine_of(stage, SHAPES, dtype, accumulation=2)
    assert engine.zero_optimization_stage() == stage, "engine.zero_optimization_stage()"
    group = engine.seq_data_parallel_group
    assert isinstance(group, dist.ProcessGroup), "engine.seq_data_parallel_group"
    assert dist.get_process_group_ranks(group) == list(range(dist.get_world_size()))
    assert manages_accumulation(engine) is True, "engine.managed_gradient_accumulation()"
    assert super_offload(engine) is False, "engine.super_offload()"
    assert engine.zenflow is False

    names = [matrix.name for matrix in matrices_of(model)]
    assert [group["module"] for group in engine.optimizer.param_groups] == names, "our key, the order"
    if stage < 3:
        for matrix in matrices_of(model):
            whole = value_of(f"{matrix.name}.weight", matrix.shape, dtype)
            assert torch.equal(matrix.parameter.detach(), whole), "weights whole below stage 3"

    # The boundary is known between backward() and step(), before the update.
    boundaries = []
    for number in range(4):
        backward(engine, number)
        boundaries.append(engine.is_gradient_accumulation_boundary())
        engine.step()
    assert boundaries == [False, True, False, True], "engine.is_gradient_accumulation_boundary()"
    assert engine.global_steps == 2
    assert [group["module"] for group in engine.optimizer.param_groups] == names, "our key after steps"


def check_refusals():
    engine, _, _ = engine_of(2, SHAPES)
    refuse_unservable(engine)
    engine.zenflow = True
    with pytest.raises(UserError, match="ZenFlow"):
        refuse_unservable(engine)
    engine.zenflow = False
    if hasattr(type(engine), "super_offload"):  # 0.17.6 has none
        options = DeepSpeedZeroOffloadOptimizerConfig(device="cpu", super_offload=True)
        engine._config.zero_config.offload_optimizer = options
        with pytest.raises(UserError, match="SuperOffload"):
            refuse_unservable(engine)
        engine._config.zero_config.offload_optimizer = None
    refuse_unservable(engine)
    assert engine.mp_world_size == 1, "engine.mp_world_size"
    assert not engine.autotp_size() > 1, "engine.autotp_size()"
    engine.mp_world_size = 2
    with pytest.raises(UserError, match="tensor parallelism: found 2 ranks"):
        refuse_unservable(engine)
    engine.mp_world_size = 1
    engine._config.tensor_parallel_config.autotp_size = 2
    with pytest.raises(UserError, match="tensor parallelism: found 2 ranks"):
        refuse_unservable(engine)


def test_optimizers_that_ignore_a_written_decay_are_refused():
    run_ranks(check_refusals, 1)


def check_experts():
    """One expert of two a rank: DeepSpeed names both deepspeed_experts.0."""
    engine, _, _ = engine_of(1, SHAPES)
    expert = torch.nn.Linear(64, 64, bias=False)
    whole = MoE(64, expert, num_experts=2, ep_size=1)
    assert whole.ep_size == 1, "MoE.ep_size"
    engine.module.add_module("moe", whole)
    refuse_unservable(engine)
    engine.module.moe = MoE(64, expert, num_experts=2, ep_size=2)
    assert engine.module.moe.num_local_experts == 1
    with pytest.raises(UserError, match="MoE: found ep_size 2, expected 1"):
        refuse_unservable(engine)


def test_experts_that_differ_under_one_name_are_refused():
    run_ranks(check_experts, 2)


def check_masters(stage):
    _, model, _ = engine_of(stage, SHAPES, torch.bfloat16)
    total = 0
    for matrix in matrices_of(model):
        mapping = matrix.parameter._hp_mapping
        if mapping is None:
            continue  # this rank holds nothing of it
        address = mapping.lp_fragment_address
        whole = value_of(f"{matrix.name}.weight", matrix.shape, torch.bfloat16).float().flatten()
        mine = whole[address.start : address.start + address.numel]
        assert mapping.hp_fragment.dtype == torch.float32, "_hp_mapping.hp_fragment: fp32"
        assert torch.equal(mapping.hp_fragment, mine), "hp_fragment: lp_fragment_address.start, .numel"
        total += address.numel
    return total


@pytest.mark.parametrize("stage", [1, 2])
def test_masters_are_linked_to_their_weights(stage):
    held = run_ranks(check_masters, 2, stage)
    assert sum(held) == sum(m * n for m, n in SHAPES), "_hp_mapping: every element on one rank"


def check_engines():
    for stage in STAGES:
        for dtype in (torch.float32, torch.bfloat16)[: 2 if stage else 1]:
            check_engine(stage, dtype)


def test_the_engine_offers_what_the_host_asks():
    run_ranks(check_engines, 2)


def check_partition(options):
    engine, model, _ = engine_of(3, SHAPES, **options)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for update in range(2):
        for matrix in matrices_of(model):
            parameter = matrix.parameter
            m, n = matrix.shape
            chunk = -(-m * n // world_size)
            assert tuple(parameter.ds_shape) == matrix.shape, "ds_shape"
            assert parameter.ds_numel == m * n, "ds_numel"
            assert parameter.ds_tensor.shape == (chunk,), "ds_tensor: flat, ceil(numel / W)"
            assert parameter.ds_tensor.dtype == torch.float32, "ds_tensor.dtype"
            if update == 0:
                whole = value_of(f"{matrix.name}.weight", matrix.shape, torch.float32).flatten()
                mine = whole[rank * chunk : (rank + 1) * chunk]
                assert torch.equal(parameter.ds_tensor[: mine.numel()].cpu(), mine), "ds_tensor: our range"
        backward(engine)
        engine.step()


NONE_PERSISTENT = {"stage3_param_persistence_threshold": 0}
SOME_PERSISTENT = {"stage3_param_persistence_threshold": 10_000}
SECOND_COPY = {"zero_hpz_partition_size": 2, **NONE_PERSISTENT}


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, NONE_PERSISTENT),
        (3, NONE_PERSISTENT),
        (3, SOME_PERSISTENT),
        (4, SOME_PERSISTENT),
        (4, SECOND_COPY),
    ],
)
def test_stage_3_partitions_flat_with_a_padded_tail(world_size, options):
    run_ranks(check_partition, world_size, options)


def check_written_decay(stage, dtype):
    """The first step of AdamW moves elements by the learning rate; a decay of 1 / lr leaves only that."""
    engine, model, _ = engine_of(stage, SHAPES, dtype)
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.5
        group["weight_decay"] = 2.0 if group["module"] == "layers.3.up" else 0.0
    backward(engine)
    engine.step()
    return {name: float((value.abs() - 0.5).abs().max()) for name, value in _whole(model).items()}


def _whole(model):
    found = {}
    for matrix in matrices_of(model):
        with deepspeed.zero.GatheredParameters(matrix.parameter, enabled=hasattr(matrix.parameter, "ds_id")):
            found[matrix.name] = matrix.parameter.detach().clone()
    return found


def check_written_decays():
    for stage in STAGES:
        sizes = check_written_decay(stage, torch.float32)
        assert sizes.pop("layers.3.up") < 1e-3, stage
        assert all(size > 0.2 for size in sizes.values()), stage


def test_decays_are_read_from_the_engines_groups():
    run_ranks(check_written_decays, 2)
