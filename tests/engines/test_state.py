"""What engines show of their state is what they compute with, and what is written there they compute with."""

from __future__ import annotations

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from alphadecay_dist.engines.native.state import TorchState
from alphadecay_dist.engines.state import WEIGHT
from alphadecay_dist.engines.zero.state import zero_state
from tests.checkpoint.ranks import cut
from tests.engines.tiny import SHAPES, Uneven, backward, engine_of, groups_of
from tests.multirank import run_ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


def one_group(model):
    return [{"params": list(model.parameters()), "weight_decay": 0.1}]


def value_for(name, kind, shape):
    """Another value for every tensor, the same on every rank."""
    seed = sum(f"{name}/{kind}".encode())
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def whole_weight(parameter):
    """What the model computes with."""
    with deepspeed.zero.GatheredParameters(parameter, enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().clone().cpu()


def check_zero(stage, dtype, in_one_group, options):
    groups = one_group if in_one_group else groups_of
    engine, model, _ = engine_of(stage, SHAPES, dtype, groups=groups, **options)
    state = zero_state(engine)
    assert {part.kind for part in state.parts()} == {WEIGHT}, "Adam's state comes with its first step"
    assert state.scalars() == {}
    for number in range(2):
        backward(engine, number)
        engine.step()
    parameters = dict(model.named_parameters())
    assert {name: tuple(whole_weight(p).shape) for name, p in parameters.items()} == state.shapes
    assert state.scalars() == {"step": dict.fromkeys(parameters, 2.0)}
    parts = {(part.name, part.kind): part for part in state.parts()}
    # DeepSpeed's own getters do not know round-robin groups, nor the moments of groups after the first.
    known = stage > 0 and not options.get("round_robin_gradients")
    moments = MOMENTS if in_one_group or stage == 3 else ()
    for name, parameter in parameters.items():
        whole = {WEIGHT: whole_weight(parameter)}
        if known:
            found = {kind: safe_get_full_optimizer_state(parameter, kind) for kind in moments}
            whole |= {WEIGHT: safe_get_full_fp32_param(parameter), **found}
        for kind, value in whole.items():
            part = parts.get((name, kind))
            if part is not None and (known or dtype == torch.float32):
                assert torch.equal(part.values.cpu(), cut(value.cpu(), part.index)), (name, kind)
    return {key: part.index.numel for key, part in parts.items()}


def check_both(*case):
    """On one start of the ranks: it is most of the time."""
    held = check_zero(*case)
    deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, of which a process may make one
    check_written(*case)
    return held


def check_written(stage, dtype, in_one_group, options):
    """A fresh engine takes values up, and goes on with them."""
    groups = one_group if in_one_group else groups_of
    engine, model, _ = engine_of(stage, SHAPES, dtype, groups=groups, **options)
    state = zero_state(engine)
    names = list(state.shapes)
    state.create(dict.fromkeys(names, MOMENTS), {"step": dict.fromkeys(names, 5.0)})
    parts = state.parts()
    assert {part.kind for part in parts} == {WEIGHT, *MOMENTS}
    for part in parts:
        part.values.copy_(cut(value_for(part.name, part.kind, part.shape), part.index))
    state.publish(5)
    assert state.scalars() == {"step": dict.fromkeys(names, 5.0)}
    assert engine.global_steps == (5 if stage else 0)
    for name, parameter in model.named_parameters():
        expected = value_for(name, WEIGHT, state.shapes[name])
        assert torch.equal(whole_weight(parameter), expected.to(dtype)), name
    backward(engine)
    engine.step()
    assert state.scalars() == {"step": dict.fromkeys(names, 6.0)}


NONE_PERSISTENT = {"stage3_param_persistence_threshold": 0}
SOME_PERSISTENT = {"stage3_param_persistence_threshold": 10_000}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOAD_BOTH = {**OFFLOAD, "offload_param": {"device": "cpu"}}
FP32, BF16 = torch.float32, torch.bfloat16
CASES = [
    (0, 2, FP32, False, {}),
    (1, 3, BF16, True, {}),
    (1, 3, FP32, True, {"round_robin_gradients": True}),
    (2, 2, BF16, True, {}),
    (2, 3, BF16, False, OFFLOAD),
    (3, 2, FP32, True, SOME_PERSISTENT),
    (3, 3, BF16, False, NONE_PERSISTENT),
    (3, 2, BF16, True, OFFLOAD_BOTH),
    (3, 2, FP32, False, {"zero_hpz_partition_size": 2, **NONE_PERSISTENT}),
]


@pytest.mark.ranks
@pytest.mark.parametrize(("stage", "world_size", "dtype", "in_one_group", "options"), CASES)
def test_zero_shows_masters_and_moments_and_takes_them_up(stage, world_size, dtype, in_one_group, options):
    held = run_ranks(check_both, world_size, stage, dtype, in_one_group, options)
    sizes = {f"layers.{i}.up.weight": m * n for i, (m, n) in enumerate(SHAPES)}
    if stage:  # each element on one rank
        for (name, kind), _ in held[0].items():
            assert sum(own.get((name, kind), 0) for own in held) == sizes[name]
        assert {kind for own in held for _, kind in own} == {WEIGHT, *MOMENTS}


def check_fsdp2(mesh_shape):
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    model = Uneven(SHAPES)
    for block in model.layers:
        fully_shard(block["up"], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(groups_of(model), lr=1e-2)
    state = TorchState(model, optimizer)
    assert {part.kind for part in state.parts()} == {WEIGHT}
    model(torch.randn(1, 172, generator=torch.Generator().manual_seed(0))).backward()
    optimizer.step()
    with torch.no_grad():
        model(torch.ones(1, 172))  # after which the modules may hold unsharded weights
    held = {}
    wholes = {group["module"] + ".weight": group["params"][0] for group in optimizer.param_groups}
    for part in state.parts():
        parameter = wholes[part.name]
        tensor = parameter if part.kind == WEIGHT else optimizer.state[parameter][part.kind]
        assert isinstance(tensor, DTensor)
        held[part.name, part.kind] = part.index.numel * part.saved
    for name, parameter in wholes.items():
        whole = parameter.full_tensor().detach()  # collective, also where a rank has nothing of it
        for part in state.parts():
            if (part.name, part.kind) == (name, WEIGHT):
                assert torch.equal(part.values, cut(whole, part.index))
                part.values.copy_(cut(value_for(name, WEIGHT, part.shape), part.index))
    state.publish(1)
    loss = model(torch.ones(1, 172))
    linears = [value_for(name, WEIGHT, shape) for name, shape in state.shapes.items()]
    expected = torch.stack([w.sum(1).square().mean() for w in linears]).sum()
    assert torch.allclose(loss, expected, rtol=1e-5), "the next forward computes with what was written"
    assert state.scalars() == {"step": dict.fromkeys(state.shapes, 1.0)}
    return held


@pytest.mark.ranks
@pytest.mark.parametrize("mesh_shape", [(1,), (3,), (2, 2)])
def test_fsdp2_shows_local_shards_and_the_first_replica_saves(mesh_shape):
    held = run_ranks(check_fsdp2, torch.Size(mesh_shape).numel(), mesh_shape)
    for i, (m, n) in enumerate(SHAPES):
        for kind in (WEIGHT, *MOMENTS):
            assert sum(own.get((f"layers.{i}.up.weight", kind), 0) for own in held) == m * n
