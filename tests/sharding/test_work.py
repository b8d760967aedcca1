from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist import UserError
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.sharding import planning
from alphadecay_dist.sharding.work import analysed
from alphadecay_dist.spectral import Rates, Windows
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.dry_run import owners
from tests.engines.tiny import TUNABLE, Uneven
from tests.multirank import run_ranks
from tests.sharding.shapes import on_meta

RULE = Settings(0.1, 500, 2 / 3, 5.0)


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
    rule = dataclasses.replace(RULE, farms=Windows(60, 1.0, (1, 1)))
    with pytest.raises(UserError, match=r"layers\.4\.up: "):
        analysed(tuned_weights(model), model, rule)


def test_a_dry_run_has_the_owners_of_the_rule():
    config = load_config("llama_60m", ("decay.preset=reference", "decay.farms_rows=128"))
    model = on_meta("llama_60m")
    found = owners(config, model, 8, 6)
    assert len(found) == 55
    counts = [sum(rank == owner for _, owner in found) for rank in range(8)]
    assert sorted(counts) == [6, 7, 7, 7, 7, 7, 7, 7], "windows of one size cost the same"


def check_agreed():
    rank = dist.get_rank()
    planning.measured_rates = lambda device: Rates(1e12, 1e12 / (5 if rank else 300))
    return planning.tridiagonal_weight(torch.device("cpu"), dist.group.WORLD)


@pytest.mark.slow
def test_the_slowest_ranks_ratio_is_everybodys():
    assert run_ranks(check_agreed, 2) == [1000, 1000]
