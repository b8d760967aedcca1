"""Both writers give the same weights on every engine; what engines/updated.py takes for granted of them."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.zero import config as zero_config
from alphadecay_dist.engines.zero.host import ZeroHost
from alphadecay_dist.params.groups import NAMES_KEY
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import TUNABLE, backward, engine_of, filled, matrices_of
from tests.multirank import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.filterwarnings("ignore:.*FSDP.*")]

UNEVEN = [*TUNABLE, (5, 3)]  # the last is not tuned
# ZeRO-1 and 2 lay a group's weights one behind the other. A matrix product rounds by where its operands lie
# in memory: even without decay two layouts have equal weights only if each begins at a multiple of 64 bytes.
SHAPES = [(64, 172), (64, 68), (172, 64), (68, 64), (50, 96), (5, 3)]
UPDATES, INTERVAL = 9, 3
BASE = 0.5
BOTH = ("groups", "premultiply")


def groups_for(apply):
    return functools.partial(param_groups, weight_decay=BASE, apply=apply)


def controller(model, optimizer, apply, engine=None):
    return AlphaDecay(model, optimizer, engine=engine, weight_decay=BASE, interval=INTERVAL, apply=apply)


def whole(parameter):
    """The fp32 weight, from wherever the engine has it."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        return safe_get_full_fp32_param(parameter).detach().flatten().clone()
    return parameter.detach().clone()


def under_deepspeed(stage, apply, decayed, dtype, options):
    """Accumulation over two micro-batches: the step at the first is no update."""
    engine, model, optimizer = engine_of(
        stage, SHAPES, dtype, accumulation=2, groups=groups_for(apply), **options
    )
    decay = controller(model, optimizer, apply, engine) if decayed else None
    for number in range(2 * UPDATES):
        backward(engine, number)
        if decay:
            decay.step()
        engine.step()
    assert engine.global_steps == UPDATES
    return {matrix.name: whole(matrix.parameter) for matrix in matrices_of(model)}


def check_deepspeed(stage, dtype, options):
    own, shared = (under_deepspeed(stage, apply, True, dtype, options) for apply in BOTH)
    without = under_deepspeed(stage, "premultiply", False, dtype, options)
    for place, name in enumerate(own):
        assert torch.equal(own[name], shared[name]), name
        assert torch.equal(own[name], without[name]) == (place == len(SHAPES) - 1), name


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOAD_BOTH = {**OFFLOAD, "offload_param": {"device": "cpu"}}
IN_PARTS = {"sub_group_size": 5000}
NONE_PERSISTENT = {"stage3_param_persistence_threshold": 0}
ENGINES = [(stage, {}) for stage in range(4)]
ENGINES += [(2, OFFLOAD), (3, {**OFFLOAD_BOTH, **IN_PARTS, **NONE_PERSISTENT})]
ENGINES_ALONE = [(3, OFFLOAD_BOTH), (3, IN_PARTS), (3, NONE_PERSISTENT)]


@pytest.mark.parametrize(
    ("stage", "options"),
    [*ENGINES, *(pytest.param(*engine, marks=pytest.mark.long) for engine in ENGINES_ALONE)],
    ids=str,
)
def test_deepspeeds_fp32_weights_are_equal_bit_for_bit(stage, options):
    run_ranks(check_deepspeed, 2, stage, torch.float32, options)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (2, {}),
        (3, OFFLOAD),
        *(pytest.param(*case, marks=pytest.mark.long) for case in [(1, {}), (3, {}), (2, OFFLOAD)]),
    ],
    ids=str,
)
def test_deepspeeds_masters_of_bf16_are_equal_bit_for_bit(stage, options):
    run_ranks(check_deepspeed, 2, stage, torch.bfloat16, options)


def sharded_by_fsdp2(model):
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block["up"], mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"ddp": DistributedDataParallel, "fsdp1": wrapped, "fsdp2": sharded_by_fsdp2}


def under_torch(kind, apply, decayed, foreach):
    model = WRAPPERS[kind](filled(SHAPES)[0])
    optimizer = torch.optim.AdamW(groups_for(apply)(model), lr=1e-2, foreach=foreach)
    decay = controller(model, optimizer, apply) if decayed else None
    for number in range(UPDATES):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
        model(torch.randn(1, 172, generator=generator)).backward()
        if decay:
            decay.step()
        optimizer.step()
    return [whole(parameter) for parameter in model.parameters()]


def check_torch(kind):
    for foreach in (True,) if kind == "fsdp1" else (False, True):
        own, shared = (under_torch(kind, apply, True, foreach) for apply in BOTH)
        assert all(map(torch.equal, own, shared))
    assert not all(map(torch.equal, own, under_torch(kind, "premultiply", False, foreach)))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_torchs_own_engines_have_equal_weights_bit_for_bit(kind):
    run_ranks(check_torch, 2, kind)


def check_compiled():
    """A compiled step over DTensors sees the hook as well."""
    found = []
    for apply in BOTH:
        model = sharded_by_fsdp2(filled(SHAPES)[0])
        optimizer = torch.optim.AdamW(groups_for(apply)(model), lr=torch.tensor(1e-2))
        decay = controller(model, optimizer, apply)
        compiled = torch.compile(optimizer.step, backend="aot_eager")
        for number in range(12):
            optimizer.zero_grad()
            model(torch.randn(1, 172, generator=torch.Generator().manual_seed(number))).backward()
            decay.step()
            compiled() if apply == "premultiply" else optimizer.step()
        found.append([whole(parameter) for parameter in model.parameters()])
    for own, shared in zip(*found, strict=True):
        assert float((own - shared).norm() / own.norm()) < 1e-5


@pytest.mark.long
def test_a_compiled_step_over_dtensors_decays():
    run_ranks(check_compiled, 2)


def check_views(stage, dtype, options):
    """Each inner step updates a flat fp32 tensor; the pieces are views of it and cover the tuned weights."""
    engine, model, optimizer = engine_of(stage, UNEVEN, dtype, groups=groups_for("premultiply"), **options)
    assert engine.basic_optimizer is optimizer, "engine.basic_optimizer"
    assert zero_config.premultiply_refusal(engine._config._param_dict) is None, "engine._config._param_dict"
    host = ZeroHost(engine)
    parameters = [matrix.parameter for matrix in matrices_of(model)][: len(TUNABLE)]
    seen = []

    def look(inner, _args, _kwargs):
        for group in inner.param_groups:
            if NAMES_KEY not in group or not group["params"]:
                continue
            (flat,) = group["params"]
            assert flat.dtype == torch.float32
            assert flat.grad is not None
            for place, piece in host.updated(group, parameters):
                assert piece.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
                held = len(_held(parameters[place], piece))
                seen.append((place, held, piece[:held].sum().item()))

    optimizer.register_step_pre_hook(look)
    masters = [whole(parameter).sum().item() for parameter in parameters]
    backward(engine)
    assert host.updated(host.param_groups()[0], parameters) or stage == 3
    engine.step()
    return seen, masters


def _held(parameter, piece):
    """A piece without its padding, which holds whatever was in memory."""
    if not hasattr(parameter, "ds_numel"):
        return piece
    return piece[: parameter.ds_numel - dist.get_rank() * piece.numel()]


VIEWS = [(*engine, torch.float32) for engine in ENGINES[1:]]
VIEWS += [(stage, {}, torch.bfloat16) for stage in (1, 2, 3)]


@pytest.mark.parametrize(("stage", "options", "dtype"), VIEWS, ids=str)
def test_an_inner_step_updates_views_that_cover_the_tuned_weights(stage, options, dtype):
    found = run_ranks(check_views, 2, stage, dtype, options)
    numel = sum(m * n for m, n in TUNABLE)
    assert sum(held for seen, _ in found for _, held, _ in seen) == numel
    for place, expected in enumerate(found[0][1]):
        pieces = [value for seen, _ in found for own, _, value in seen if own == place]
        assert sum(pieces) == pytest.approx(expected, abs=1e-2)


def check_refused(options, words):
    engine, model, optimizer = engine_of(2, SHAPES, groups=groups_for("premultiply"), **options)
    with pytest.raises(UserError, match=words):
        controller(model, optimizer, "premultiply", engine)


def test_round_robin_gradients_are_refused():
    run_ranks(check_refused, 1, {"round_robin_gradients": True}, "round_robin_gradients hides where")


def check_reloaded(stage, folder):
    """A new engine that loads goes on with the loaded decays, in masters that were linked anew."""
    runs = []
    for resumed in (False, True):
        engine, model, optimizer = engine_of(stage, SHAPES, torch.bfloat16, groups=groups_for("premultiply"))
        decay = controller(model, optimizer, "premultiply", engine)
        state = None
        for number in range(16):
            if number == 8:
                state = decay.state_dict()
                if resumed:
                    engine.load_checkpoint(folder, tag="there")
                    decay.load_state_dict(runs[0][1])
                else:
                    engine.save_checkpoint(folder, tag="there")
            if number >= 8 or not resumed:
                backward(engine, number)
                decay.step()
                engine.step()
        runs.append(({m.name: whole(m.parameter) for m in matrices_of(model)}, state))
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_loaded_engine_goes_on_with_the_loaded_decays(stage, tmp_path):
    run_ranks(check_reloaded, 2, stage, str(tmp_path))


def test_what_stands_against_premultiplying_is_said():
    refusal = zero_config.premultiply_refusal
    assert refusal({}) is None
    assert refusal({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}) is None
    assert "stage 0 with bf16" in refusal({"bf16": {"enabled": True}})
    for section in ("offload_optimizer", "offload_param"):
        nvme = {"zero_optimization": {"stage": 3, section: {"device": "nvme"}}}
        assert f"{section} on NVMe" in refusal(nvme)
    assert refusal({"zero_optimization": {"stage": 3, "round_robin_gradients": True}}) is None
