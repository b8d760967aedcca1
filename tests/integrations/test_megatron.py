"""Megatron-Core's scheduler writes every group's decay after each update; ours is in it."""

from __future__ import annotations

import pytest
import torch

from alphadecay_dist import AlphaDecay, param_groups
from tests.integrations.hosts import (
    BASE,
    INTERVAL,
    RATE,
    SETTINGS,
    UPDATES,
    decays_of,
    require_same,
    weights_of,
)
from tests.models import Blocks

pytest.importorskip("megatron.core", reason="megatron-core is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

START, END = 0.05, 0.2  # of the decay that the schedule multiplies by each group's factor


def loss_of(model, update):
    generator = torch.Generator().manual_seed(update)
    return model(torch.randn(4, 64, generator=generator)).square().mean()


def tiny():
    torch.manual_seed(0)
    return Blocks()


class Run:
    """A user's loop: a torch optimizer under Megatron's scheduler."""

    def __init__(self):
        from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

        self.model = tiny()
        groups = param_groups(self.model, weight_decay=BASE, untuned="zero_1d")
        for group in groups:
            group["wd_mult"] = group["weight_decay"] / BASE
        self.optimizer = torch.optim.AdamW(groups, lr=RATE)
        self.scheduler = OptimizerParamScheduler(
            self.optimizer,
            init_lr=RATE,
            max_lr=RATE,
            min_lr=RATE,
            lr_warmup_steps=0,
            lr_decay_steps=UPDATES,
            lr_decay_style="constant",
            start_wd=START,
            end_wd=END,
            wd_incr_steps=UPDATES,
            wd_incr_style="linear",
        )
        self.decay = AlphaDecay(self.model, self.optimizer, weight_decay=BASE, **SETTINGS)
        self.refreshed = []

    def train(self, updates):
        for update in updates:
            loss_of(self.model, update).backward()
            self.refreshed += [update] if self.decay.step() else []
            self.optimizer.step()
            self.scheduler.step(1)
            self.optimizer.zero_grad()
        return decays_of(self.decay), weights_of(self.model)

    def parts(self):
        return self.model, self.optimizer, self.scheduler, self.decay


def our_own():
    """The same without Megatron: before each update the decay times where the schedule is."""
    model = tiny()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=BASE, untuned="zero_1d"), lr=RATE)
    decay = AlphaDecay(model, optimizer, weight_decay=BASE, **SETTINGS)
    for update in range(UPDATES):
        loss_of(model, update).backward()
        decay.step()
        kept = [group["weight_decay"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["weight_decay"] *= (START + (END - START) * update / UPDATES) / BASE
        optimizer.step()
        for group, own in zip(optimizer.param_groups, kept, strict=True):
            group["weight_decay"] = own
        optimizer.zero_grad()
    return decays_of(decay), weights_of(model)


def test_under_megatrons_schedule_each_matrix_has_our_decay_times_the_schedule():
    expected, run = our_own(), Run()
    assert len(set(expected[0].values())) > 2
    require_same(run.train(range(UPDATES)), expected)
    assert run.refreshed == list(range(0, UPDATES, INTERVAL))


def test_under_megatrons_schedule_a_resumed_run_ends_as_the_unbroken_one():
    broken, resumed = Run(), Run()
    broken.train(range(5))
    for own, saved in zip(resumed.parts(), broken.parts(), strict=True):
        own.load_state_dict(saved.state_dict())
    require_same(resumed.train(range(5, UPDATES)), our_own())
    assert resumed.refreshed == [6, 9]
