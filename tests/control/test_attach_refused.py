"""Where attach() comes too late, or would lose a schedule, and what it says; and just before engines."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import lr_scheduler as schedules

from alphadecay_dist import AlphaDecay, UserError, attach
from tests.control.test_attach import BASE, RATE, SETTINGS, falling, pair
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import engine_of
from tests.models import Blocks
from tests.multirank import run_ranks


class Warmup(schedules.LambdaLR):
    """Somebody's own, with another list for each group."""

    def __init__(self, optimizer):
        super().__init__(optimizer, falling)
        self.floors = [0.0] * len(optimizer.param_groups)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda own: [schedules.LambdaLR(own, falling)][:0], r"found none, but .* schedulers=\[scheduler\]"),
        (lambda own: [Warmup(own)], "Warmup has a list 'floors' of 2, which may be one for each group"),
        (lambda own: [schedules.StepLR(pair(Blocks()), 2)], "found a StepLR of another optimizer"),
        (lambda own: [None], "schedulers: found NoneType, expected learning rate schedulers"),
    ],
    ids=["forgotten", "unknown", "another", "none"],
)
def test_a_schedule_that_would_not_follow_is_refused_before_anything_changes(given, words):
    model = Blocks()
    optimizer = pair(model)
    with pytest.raises(UserError, match=words):
        attach(model, optimizer, schedulers=given(optimizer))
    assert len(optimizer.param_groups) == 2


def sharded_later(model):
    optimizer = pair(model)
    mesh = dist.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    return optimizer


def attached_twice(model):
    optimizer = pair(model)
    attach(model, optimizer)
    return optimizer


def captured(model):
    optimizer = pair(model, capturable=True)
    optimizer.state[model.head.weight]["step"] = torch.tensor(1.0)
    return optimizer


TOO_LATE = {
    "sharded": (
        sharded_later,
        "blocks.0.0 and 2 other tuned weights are not in the optimizer, as where a model",
    ),
    "foreign": (lambda model: pair(Blocks()), "are not in the optimizer"),
    "twice": (attached_twice, "have a key 'module' already"),
    "lbfgs": (lambda model: torch.optim.LBFGS(model.parameters()), "found LBFGS, whose param groups have no"),
    "zero": (
        lambda model: ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, weight_decay=BASE),
        "found ZeroRedundancyOptimizer, which keeps more by group",
    ),
    "captured": (captured, "capturable=True after its first step"),
    "rprop": (lambda model: torch.optim.Rprop(model.parameters()), "found Rprop, whose param groups have no"),
    "groups": (lambda model: [{"params": list(model.parameters())}], "found param groups, expected a torch"),
}


def check_too_late():
    for make, words in TOO_LATE.values():
        model = Blocks()
        optimizer = make(model)
        before = len(getattr(optimizer, "param_groups", ()))
        with pytest.raises(UserError, match=words):
            attach(model, optimizer)
        assert len(getattr(optimizer, "param_groups", ())) == before


def check_fsdp1():
    """Parameters that FSDP1 shows are served; those that it hides are refused."""
    model = wrapped(Blocks())
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=BASE)
    attach(model, optimizer)
    AlphaDecay(model, optimizer, **SETTINGS).refresh()
    assert len({group["weight_decay"] for group in optimizer.param_groups[:-1]}) == 3
    model = wrapped(Blocks(), use_orig_params=False)
    with pytest.raises(UserError, match="FSDP: found use_orig_params=False"):
        attach(model, torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=BASE))


@pytest.mark.ranks
def test_the_fsdp_of_before():
    run_ranks(check_fsdp1, 2)


@pytest.mark.ranks
def test_where_it_is_too_late_it_says_what_to_do():
    run_ranks(check_too_late, 1)


def attached_groups(model):
    """The groups of an optimizer that was attached to, under zero.Init too."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=BASE)
    attach(model, optimizer)
    return optimizer.param_groups


def check_deepspeed(stage):
    """Before DeepSpeed takes the groups each matrix gets its own decay; afterwards it is too late."""
    shapes = [(64, 172), (61, 67), (172, 64)]
    engine, model, optimizer = engine_of(stage, shapes, groups=attached_groups)
    decay = AlphaDecay(model, optimizer, engine=engine, **SETTINGS)
    decay.step()
    found = [group["weight_decay"] for group in engine.optimizer.param_groups]
    assert len(set(found)) == 3
    assert found == [module.weight_decay for module in decay.modules.values()]
    for late in (engine, model):
        with pytest.raises(
            UserError, match="a DeepSpeedEngine trains, which has flattened the groups; attach"
        ):
            attach(late, engine.optimizer)


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [1, 3])
def test_before_deepspeed_takes_the_optimizer(stage):
    run_ranks(check_deepspeed, 2, stage)
