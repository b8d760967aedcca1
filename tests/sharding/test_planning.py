from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from alphadecay_dist import UserError
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.replicated import replicated_sources
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.sharding.layout import chunked_layout
from alphadecay_dist.sharding.ownership import TRIDIAGONAL, assign_owners, cost
from alphadecay_dist.sharding.planning import analysed, plan_exchange, schedule_for
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.dry_run import owners
from alphadecay_dist.training.preflight import ResolvedRun
from tests.engines.tiny import TUNABLE, Uneven
from tests.sharding.shapes import on_meta

RULE = Settings()


def names_of(weights):
    return [weight.name for weight in weights]


def test_the_released_code_leaves_out_the_first_and_the_last_linear():
    model = Uneven(TUNABLE)
    weights = tuned_weights(model)
    assert analysed(weights, model, RULE) == weights
    released = analysed(weights, model, dataclasses.replace(RULE, preset="reference"))
    assert names_of(released) == names_of(weights)[1:-1]
    with pytest.raises(UserError, match="no module to tune"):
        analysed(weights[:1], model, dataclasses.replace(RULE, preset="reference"))


def test_windows_that_do_not_fit_are_refused_by_name():
    model = Uneven(TUNABLE)
    rule = dataclasses.replace(RULE, farms_rows=60)
    with pytest.raises(UserError, match=r"layers\.4\.up: "):
        analysed(tuned_weights(model), model, rule)


def test_a_dry_run_has_the_owners_of_the_rule():
    config = load_config("llama_60m", ("decay.preset=reference", "decay.farms_rows=128"))
    model = on_meta("llama_60m")
    found = owners(ResolvedRun(config, model.config, model, {}, None), 8, "cpu")
    assert len(found) == 55
    counts = [sum(rank == owner for _, owner in found) for rank in range(8)]
    assert sorted(counts) == [6, 7, 7, 7, 7, 7, 7, 7], "windows of one size cost the same"


@pytest.mark.parametrize("device", TRIDIAGONAL)
def test_owners_follow_from_shapes_and_the_type_of_device_alone(device):
    weights = tuned_weights(on_meta("llama_60m"))
    layouts = {weight.name: chunked_layout(math.prod(weight.shape), 8) for weight in weights}
    found = schedule_for(weights, layouts, 8, itemsize=2, device=device)
    costs = {weight.name: cost(weight.shape, TRIDIAGONAL[device]) for weight in weights}
    assert found.plan.owners == assign_owners(costs, 8)
    assert found.plan.budget == 256 * 2**20
    assert list(found.routes.blocks) == names_of(weights)


def test_weights_of_several_types_are_refused_unless_one_is_named():
    model = Uneven(TUNABLE)
    model.layers[1].bfloat16()
    weights = tuned_weights(model)

    def exchange(dtype):
        return plan_exchange(
            weights, lambda: replicated_sources(weights, None), RULE, group=None, dtype=dtype
        )

    with pytest.raises(UserError, match=r"have types torch\.bfloat16, torch\.float32, expected one"):
        exchange(None)
    assert {matrix.dtype for _, matrix in exchange(torch.float32).matrices()} == {torch.float32}
