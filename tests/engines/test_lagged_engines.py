"""On every engine, training with a lag is bit for bit the plain training whose decays are written later."""

from __future__ import annotations

import time

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.spectral import batch
from tests.engines.tiny import TUNABLE, backward, engine_of, filled
from tests.multirank import run_ranks

LAG, INTERVAL, UPDATES = 2, 4, 12
SETTINGS = {"weight_decay": 0.5, "min_ratio": 0.2, "max_ratio": 5.0, "interval": INTERVAL}
ENGINES = ["plain", "ddp", "fsdp2", pytest.param("zero1", marks=pytest.mark.long), "zero2", "zero3"]


class Training:
    """A small model in training: its groups, what this rank holds of its weights, and an update."""

    def __init__(self, engine):
        self._engine = None
        if engine.startswith("zero"):
            self._engine, self.model, self._optimizer = engine_of(int(engine[-1]), TUNABLE)
        else:
            self.model, _ = filled(TUNABLE)
            if engine == "fsdp2":
                mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
                for block in self.model.layers:
                    fully_shard(block["up"], mesh=mesh)
                fully_shard(self.model, mesh=mesh)
            elif engine == "ddp":
                self.model = torch.nn.parallel.DistributedDataParallel(self.model)
            self._optimizer = torch.optim.AdamW(param_groups(self.model, weight_decay=0.1), lr=1e-2)
        self.write(dict.fromkeys(self.decays(), SETTINGS["weight_decay"]))

    def controller(self, **options):
        return AlphaDecay(self.model, self._optimizer, engine=self._engine, **SETTINGS, **options)

    def groups(self):
        return (self._engine.optimizer if self._engine else self._optimizer).param_groups

    def decays(self):
        return {group["module"]: group["weight_decay"] for group in self.groups()}

    def write(self, decays):
        for group in self.groups():
            group["weight_decay"] = decays[group["module"]]

    def held(self):
        parameters = list(self.model.parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=hasattr(parameters[0], "ds_id")):
            locals_ = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
            return [local.detach().clone() for local in locals_]

    def update(self, number, before_step):
        if self._engine:
            backward(self._engine, number)
            before_step()
            self._engine.step()
            return
        self._optimizer.zero_grad()
        generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
        self.model(torch.randn(1, 172, generator=generator)).backward()
        before_step()
        self._optimizer.step()


def lagged(training):
    return training.controller(lag=LAG).step


def slow_on_rank_0(training):
    """Rank 0 is never ready when it is time to write, the others are."""
    analyze_all = batch._analyze_all

    def slow(stack, estimator):
        time.sleep(0.02)
        return analyze_all(stack, estimator)

    if dist.get_rank() == 0:
        batch._analyze_all = slow
    return training.controller(lag=LAG).step


def written_later(training):
    """Every refresh is found at once, and kept from the groups for ``LAG`` updates."""
    plain, number, waiting = training.controller(), 0, {}

    def step():
        nonlocal number
        training.write(waiting.pop(number, training.decays()))
        kept = training.decays()
        if plain.step() is not None:
            waiting[number + LAG] = training.decays()
            training.write(kept)
        number += 1

    return step


def at_once(training):
    return training.controller().step


def trained(engine, policy):
    """Weights held after all updates, the decays of each, and when refreshes were written."""
    training = Training(engine)
    step, decays, written = policy(training), [], []

    def before_step():
        refresh = step()
        decays.append(training.decays())
        if refresh is not None:
            written.append((refresh.step, refresh.written_at, len(decays) - 1))

    for number in range(UPDATES):
        training.update(number, before_step)
    return training.held(), decays, written


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def check_lag(engine):
    weights, decays, _ = trained(engine, written_later)
    assert len({tuple(d.values()) for d in decays}) == 4  # three refreshes, and the base decay before them
    for policy in (lagged, slow_on_rank_0):
        found_weights, found_decays, written = trained(engine, policy)
        assert found_decays == decays
        assert same(found_weights, weights)
        assert written == [(INTERVAL * n, INTERVAL * n + LAG, INTERVAL * n + LAG) for n in range(3)]
    assert not same(trained(engine, at_once)[0], weights)


@pytest.mark.ranks
@pytest.mark.parametrize("engine", ENGINES)
def test_a_lag_gives_the_weights_of_a_plain_run_that_writes_later(engine):
    run_ranks(check_lag, 1 if engine == "plain" else 2, engine)
