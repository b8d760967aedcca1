"""What is allowed and seldom meant is said once, by rank 0."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer

from alphadecay_dist import AlphaDecay, param_groups
from tests.controllers import SETTINGS, setup, update
from tests.engines.tiny import TUNABLE, Uneven, engine_of
from tests.multirank import run_ranks


def said(work):
    """The texts of its warnings."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        work()
    return [str(warning.message) for warning in found]


def construct(
    kind=torch.optim.AdamW, weight_decay=0.1, own=0.1, dtype=torch.float32, apply="groups", **options
):
    model = Uneven(TUNABLE).to(dtype)
    optimizer = kind(param_groups(model, weight_decay=own, apply=apply), lr=1e-3)
    return AlphaDecay(model, optimizer, weight_decay=weight_decay, apply=apply, **options)


def test_what_is_meant_is_not_doubted():
    def plain():
        decay = construct()
        construct(torch.optim.SGD)
        construct(apply="premultiply")
        construct(torch.optim.Adam, preset="reference")
        decay.refresh()
        decay.load_state_dict(decay.state_dict())

    assert said(plain) == []


def test_a_weight_decay_of_0_is_doubted():
    (text,) = said(lambda: construct(weight_decay=0.0, own=0.0))
    assert text.startswith("weight_decay: found 0 (transformers' Trainer has it by default)")


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_another_base_decay_than_the_groups_have_is_doubted(apply):
    def mixed():
        model = torch.nn.ModuleDict({"blocks": Uneven(TUNABLE), "head": torch.nn.Linear(60, 60)})
        optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.01, apply=apply))
        AlphaDecay(model, optimizer, weight_decay=0.1, apply=apply).refresh()

    (text,) = said(mixed)
    assert "found 0.1 in AlphaDecay and 0.01 in the optimizer's groups" in text


def test_groups_that_an_earlier_run_has_written_are_not_doubted():
    def again():
        model, optimizer, decay = setup()
        decay.refresh()
        AlphaDecay(model, optimizer, weight_decay=0.2)

    assert said(again) == []


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RMSprop])
def test_an_l2_decay_that_is_divided_by_the_gradient_is_doubted(kind):
    (text,) = said(lambda: construct(kind))
    assert text.startswith(f"optimizer: found {kind.__name__}, which adds the decay to the gradient (L2)")


def test_a_monitor_beside_another_policy_is_meant():
    def both():
        model, optimizer, decay = setup()
        watch = AlphaDecay(model, optimizer, policy="monitor")
        for number in range(3):
            watch.step()
            update(model, optimizer, decay, number)

    assert said(both) == []


def test_l2_adam_does_not_lose_decays_of_bf16_weights():
    """Its steps have the size of the learning rate whatever the decay adds to the gradient."""
    texts = said(lambda: construct(torch.optim.Adam, dtype=torch.bfloat16))
    assert ["fp32 masters" in text for text in texts] == [False]
    assert "fp32 masters" in said(lambda: construct(torch.optim.SGD, dtype=torch.bfloat16))[0]


def test_two_controllers_that_step_in_turn_are_doubted_once():
    def both():
        one, other = setup(), setup(seed=1)
        for number in range(4):
            update(*one, number)
            update(*other, number)

    (first, second) = said(both)
    assert first == second
    assert first.startswith("two AlphaDecay objects step in turn")


def test_one_controller_after_another_is_not_doubted():
    def in_a_row():
        first, second = setup(), setup()
        for run in (first, second):
            for number in range(3):
                update(*run, number)

    assert said(in_a_row) == []


def sharded_adam():
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=0.1)
    optimizer = ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.Adam, lr=1e-3)
    return said(lambda: AlphaDecay(model, optimizer, **SETTINGS))


@pytest.mark.ranks
def test_an_optimizer_inside_zero_redundancy_is_looked_at():
    first, second = (" ".join(texts) for texts in run_ranks(sharded_adam, 2))  # torch's own among them
    assert first.count("found Adam, which adds the decay to the gradient (L2)") == 1
    assert "found Adam" not in second


def after_the_update():
    """An engine without accumulation, and step() after the engine's."""
    engine, model, optimizer = engine_of(1, TUNABLE)
    decay = AlphaDecay(model, optimizer, engine=engine, **SETTINGS)

    def loop():
        for _ in range(3):
            engine.backward(engine(torch.randn(1, 172)))
            engine.step()
            decay.step()

    return said(loop)


@pytest.mark.ranks
def test_a_step_after_the_update_is_said_once():
    ((line,),) = run_ranks(after_the_update, 1)
    assert line.startswith("step(): the engine made an update before the first call")


def accelerated(step_with_boundary, stage):
    """As Accelerate does: the boundary is set inside backward, and the engine steps there too."""
    engine, model, optimizer = engine_of(stage, TUNABLE, accumulation=2)
    decay = AlphaDecay(model, optimizer, engine=engine, interval=2, **SETTINGS)
    found = []

    def loop():
        for number in range(8):
            sync = number % 2 == 1
            refresh = decay.step(boundary=sync) if step_with_boundary else decay.step()
            if refresh:
                found.append((number, refresh.step, engine.global_steps))
            engine.set_gradient_accumulation_boundary(is_boundary=sync)
            generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
            engine.backward(engine(torch.randn(1, 172, generator=generator)))
            if sync:
                engine.step()

    return said(loop), found


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [1, 3])
def test_where_accelerate_sets_the_boundary_it_can_be_given(stage):
    for texts, found in run_ranks(accelerated, 2, True, stage):
        assert texts == []
        assert found == [(1, 0, 0), (5, 2, 2)], "before updates 0 and 2, at their last micro-batches"


@pytest.mark.ranks
def test_an_update_that_went_by_uncounted_is_said_by_rank_0():
    (first, _), (second, _) = run_ranks(accelerated, 2, False, 1)
    assert len(first) == 1
    assert "step(boundary=accelerator.sync_gradients)" in first[0]
    assert second == []
