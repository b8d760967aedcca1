from __future__ import annotations

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.host import host_for
from alphadecay_dist.engines.native.host import PlainHost
from tests.engines.tiny import TUNABLE, Uneven, engine_of
from tests.multirank import run_ranks

SHARDED = r"layers\.0\.up is sharded, found \(0,\), expected the whole \(64, 172\).*engine=engine"
ANOTHER = r"layers\.0\.up is not in the optimizer"


def controller(model, optimizer, **options):
    return AlphaDecay(model, optimizer, weight_decay=0.1, **options)


def test_without_a_process_group_it_is_one_process():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    host = host_for(model, [optimizer], None, None)
    assert isinstance(host, PlainHost)
    assert host.group is None
    assert host.at_boundary()
    assert host.param_groups() == optimizer.param_groups


def test_a_weight_that_is_not_whole_is_refused():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    model.layers[0]["up"].weight.data = torch.empty(0)
    with pytest.raises(UserError, match=SHARDED):
        controller(model, optimizer)
    model = Uneven(TUNABLE)
    with pytest.raises(UserError, match=ANOTHER):
        controller(model, optimizer)


def check_zero_without_engine(stage):
    engine, model, optimizer = engine_of(stage, TUNABLE)
    for wrong, advice in [
        ((model, optimizer), "engine: found none, but DeepSpeed trains this model.*engine=engine"),
        ((model, engine.optimizer), "engine: found none, but DeepSpeed"),
        ((model, engine), "optimizer: found a DeepSpeedEngine.*engine=engine"),
    ]:
        if stage:
            with pytest.raises(UserError, match=advice):
                controller(*wrong)
    if stage == 0:
        with pytest.warns(UserWarning, match="engine: found none, though a DeepSpeedEngine"):
            controller(model, optimizer)
    decays = []
    for given in ((model, engine), (engine, None), (engine, engine)):
        found = controller(given[0], optimizer, engine=given[1]).refresh().modules
        decays.append({name: module.weight_decay for name, module in found.items()})
    assert decays == [decays[0]] * 3
    another = engine_of(stage, TUNABLE)[0]
    with pytest.raises(UserError, match="model: found another engine"):
        controller(engine, optimizer, engine=another)
    with pytest.raises(UserError, match="model: found another model than engine= trains"):
        controller(Uneven(TUNABLE), optimizer, engine=engine)
    with pytest.raises(UserError, match="engine: found 'zero3', expected the DeepSpeedEngine"):
        controller(model, optimizer, engine="zero3")


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_that_is_missing_or_in_the_wrong_place_is_taken_or_named(stage):
    run_ranks(check_zero_without_engine, 1, stage)


def check_muon():
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=0.1)
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=groups, config=MUON)
    with pytest.raises(UserError, match="DeepSpeed's own MuonWithAuxAdam, whose groups lose their names"):
        controller(model, engine.optimizer, engine=engine)


def check_torchs_muon():
    model = Uneven(TUNABLE)
    optimizer = torch.optim.Muon(param_groups(model, weight_decay=0.1)[:-1], lr=0.1)
    config = {**MUON, "zero_allow_untested_optimizer": True}
    del config["optimizer"]
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    with pytest.raises(UserError, match="found Muon at ZeRO stage 1, which gives it pieces"):
        controller(model, optimizer, engine=engine)


MUON = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "Muon", "params": {"lr": 1e-3}},
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
}


@pytest.mark.ranks
@pytest.mark.parametrize("check", [check_muon, check_torchs_muon])
def test_muon_that_has_no_names_or_no_matrices_is_refused(check):
    run_ranks(check, 1)


def wrapper_of(optimizer):
    """As accelerate's AcceleratedOptimizer: an Optimizer whose constructor no torch optimizer's called."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self):
            self.optimizer = optimizer

        @property
        def param_groups(self):
            return self.optimizer.param_groups

    return Wrapper()


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_an_optimizer_that_wraps_another_stands_for_it(apply):
    model = Uneven(TUNABLE)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1, apply=apply), lr=1.0)
    controller(model, wrapper_of(wrapper_of(optimizer)), apply=apply).step()
    before = model.layers[0]["up"].weight.detach().clone()
    model(torch.ones(1, 172)).backward()
    for parameter in model.parameters():
        parameter.grad.zero_()
    optimizer.step()
    assert 0 < (model.layers[0]["up"].weight / before).median() < 1 - 0.06


def test_what_is_no_model_or_optimizer_is_named():
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=0.1)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for wrong, words in [
        ((optimizer, model), "found SGD as model and Uneven as optimizer"),
        ((model, []), r"optimizer: found \[\], expected one or several, each once"),
        ((model, [optimizer, optimizer]), r"found \['SGD', 'SGD'\], expected one or several, each once"),
        ((model, [optimizer, None]), "found NoneType, expected a torch optimizer"),
        ((model, (model, optimizer)), "found Uneven as model and Uneven, SGD as optimizer"),
        ((model, groups), r"found param groups, .*torch\.optim\.AdamW\(groups"),
        ((model, None), "found NoneType, expected a torch optimizer"),
        (([model], optimizer), r"model: found \["),
    ]:
        with pytest.raises(UserError, match=words):
            controller(*wrong)
    for name, value in [
        ("engine", model),
        ("process_group", "gloo"),
        ("dtype", "bf17"),
        ("dtype", torch.int8),
        ("memory_budget", "1GB"),
        ("parts", ["*.qkv"]),
        ("assign", None),
        ("metric", ["alpha"]),
        ("farms", 128),
        ("min_ratio", "1"),
        ("interval", "5"),
        ("interval", 5.0),
    ]:
        with pytest.raises(UserError, match=f"^{name}: found "):
            controller(model, optimizer, **{name: value})
    for sizes in (64, "64,64,64", (64.0, 64.0)):
        with pytest.raises(UserError, match=r"^parts of \*\.up: found "):
            controller(model, optimizer, parts={"*.up": sizes})
    with pytest.raises(UserError, match=r"^weight_decay: found '0\.1', expected a number"):
        AlphaDecay(model, optimizer, weight_decay="0.1")
    for wrong in ("0.1", None, -1):
        with pytest.raises(UserError, match=r"^weight_decay: found .* expected a number >= 0"):
            param_groups(model, weight_decay=wrong)


def test_numbers_of_numpy_and_one_pattern_are_taken():
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=np.float32(0.5), modules="*.up", follow="bias")
    optimizer = torch.optim.SGD(groups, lr=0.1)
    numbers = {"weight_decay": np.float32(0.5), "interval": np.int64(5), "lag": np.int32(3)}
    decay = AlphaDecay(model, optimizer, **numbers)
    other = AlphaDecay(model, optimizer, weight_decay=0.5, interval=5, lag=3)
    decay.refresh()
    other.load_state_dict(decay.state_dict())


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16"])
def test_a_type_may_be_given_by_its_name(name):
    model = Uneven(TUNABLE)
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    by_name, by_type = (controller(model, optimizer, dtype=own).refresh() for own in (name, torch.bfloat16))
    assert by_name.modules == by_type.modules != controller(model, optimizer).refresh().modules


def check_meshes():
    """Two jobs side by side, a mesh each of the ranks (0, 1) and (2, 3)."""
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("job", "shard"))
    for wrap in (
        lambda model: fully_shard(model, mesh=mesh["shard"]),
        lambda model: DistributedDataParallel(model, process_group=mesh["shard"].get_group()),
        lambda model: nn.Sequential(DistributedDataParallel(model, process_group=mesh["shard"].get_group())),
    ):
        model = wrap(Uneven(TUNABLE))
        optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
        with pytest.raises(UserError, match=r"ranks \[0, 1\].*ranks \[2, 3\].*process_group="):
            controller(model, optimizer)
        for group in (mesh["shard"], mesh["shard"].get_group()):
            assert len(controller(model, optimizer, process_group=group).refresh().bytes_received) == 2
    with pytest.raises(UserError, match="process_group: found a mesh of 2 dimensions"):
        controller(model, optimizer, process_group=mesh)
    of_two = dist.DeviceMesh("cpu", [0, 1])
    some = dist.new_group([0, 1])
    if dist.get_rank() > 1:
        with pytest.raises(UserError, match="process_group: this rank is not in it"):
            controller(model, optimizer, process_group=of_two)
        with pytest.raises(UserError, match="process_group: this rank is not in it"):
            controller(model, optimizer, process_group=some)


@pytest.mark.ranks
def test_a_mesh_over_some_of_the_ranks_is_refused_with_what_to_give():
    run_ranks(check_meshes, 4)
