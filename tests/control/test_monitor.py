"""``monitor`` watches any training and moves nothing."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch.distributed.fsdp import fully_shard

from alphadecay_dist import AlphaDecay
from alphadecay_dist.control.refresh import log_refresh
from alphadecay_dist.spectral import METRICS, analyze
from tests.engines.tiny import TUNABLE, Uneven, backward, engine_of, filled, matrices_of
from tests.multirank import run_ranks

UPDATES = 5


def watch(model, optimizer, **options):
    return AlphaDecay(model, optimizer, policy="monitor", interval=2, **options)


def one_group(model):
    """Groups that know nothing of us."""
    return [{"params": list(model.parameters()), "weight_decay": 0.3}]


def under_fsdp2(make, watched):
    model, _ = filled(TUNABLE)
    for block in model.layers:
        fully_shard(block["up"])
    fully_shard(model)
    optimizer = make(one_group(model))
    decay = watch(model, optimizer) if watched else None
    refreshes = []
    for number in range(UPDATES):
        model(
            torch.randn(1, 172, generator=torch.Generator().manual_seed(10 * number + dist.get_rank()))
        ).backward()
        refreshes.append(decay and decay.step())
        optimizer.step()
        optimizer.zero_grad()
    return {m.name: m.parameter.full_tensor().detach() for m in matrices_of(model)}, refreshes


def under_deepspeed(stage, watched):
    engine, model, optimizer = engine_of(stage, TUNABLE, groups=one_group)
    decay = watch(model, optimizer, engine=engine) if watched else None
    refreshes = []
    for number in range(UPDATES):
        backward(engine, number)
        refreshes.append(decay and decay.step())
        engine.step()
    weights = {m.name: safe_get_full_fp32_param(m.parameter).detach().clone() for m in matrices_of(model)}
    return {
        name: weight.reshape(shape) for (name, weight), shape in zip(weights.items(), TUNABLE, strict=True)
    }, refreshes


def muon(groups):
    return torch.optim.Muon(groups[0]["params"], lr=1e-2, weight_decay=0.3)


def adamw(groups):
    return torch.optim.AdamW(groups, lr=1e-2)


def check_watching():
    for train in (lambda watched: under_fsdp2(adamw, watched), lambda watched: under_deepspeed(3, watched)):
        without, _ = train(False)
        weights, refreshes = train(True)
        assert all(torch.equal(weights[name], without[name]) for name in without)
        assert [r and r.step for r in refreshes] == [0, None, 2, None, 4]
    _check_numbers(refreshes[0], filled(TUNABLE)[1])


def _check_numbers(refresh, values):
    for name, module in refresh.modules.items():
        found = analyze(values[name])
        assert module.weight_decay is None
        assert module.status == "measured"
        assert set(module.metrics) == set(METRICS)
        for metric in METRICS:
            assert module.metrics[metric] == pytest.approx(getattr(found, metric), rel=1e-5)


@pytest.mark.ranks
def test_training_is_bit_for_bit_as_without_it_under_fsdp2_and_zero3():
    run_ranks(check_watching, 2)


class Closed:
    """An optimizer that shows nothing of itself."""

    __slots__ = ("_optimizer",)

    def __init__(self, parameters):
        self._optimizer = torch.optim.SGD(parameters, lr=0.1)

    def step(self):
        self._optimizer.step()


@pytest.mark.parametrize(
    "make", [Closed, muon, torch.optim.Adafactor, lambda _: None, lambda of: [Closed(of)]]
)
def test_any_optimizer_will_do(make, tmp_path):
    model, values = filled(TUNABLE)
    optimizer = make(one_group(model) if make is muon else list(model.parameters()))
    decay = watch(model, optimizer)
    refresh = decay.step()
    _check_numbers(refresh, values)
    log_refresh(tmp_path, refresh)
    (line,) = (tmp_path / "decay.jsonl").read_text().splitlines()
    module = json.loads(line)["modules"]["layers.0.up"]
    assert module["weight_decay"] is None
    assert module["metrics"]["stable_rank"] == refresh.modules["layers.0.up"].metrics["stable_rank"]
    assert json.loads(line)["undefined"] == 0
    assert decay.modules["layers.0.up"].alpha == refresh.modules["layers.0.up"].alpha


def test_what_is_undefined_is_null_and_counted():
    model, _ = filled(TUNABLE)
    with torch.no_grad():
        model.layers[0]["up"].weight.zero_()
    refresh = watch(model, None).step()
    module = refresh.modules["layers.0.up"]
    assert (module.alpha, module.status, refresh.undefined) == (None, "zero", 1)
    assert module.metrics["alpha"] is None


def test_a_lagged_watch_resumes_with_all_that_it_found():
    model, values = filled(TUNABLE)
    decay = AlphaDecay(model, None, policy="monitor", interval=4, lag=2)
    assert decay.step() is None
    again = AlphaDecay(Uneven(TUNABLE), None, policy="monitor", interval=4, lag=2)
    again.load_state_dict(decay.state_dict())
    assert again.step() is None
    refresh = again.step()
    assert (refresh.step, refresh.written_at) == (0, 2)
    _check_numbers(refresh, values)
