"""A policy that takes up a run of another one begins as in a run of its own, at the next update."""

from __future__ import annotations

import pytest

from alphadecay_dist.decay.policies import POLICIES
from tests.controllers import decays_in, setup, update

OPTIONS = {"static": {"factors": "layers.1.*=2"}, "awd": {"factor": 0.5}}
SINCE = 4  # updates of the first policy; no refresh is due after them
EARLIER = ("none", "awd", "alphadecay", "llr", "cautious")
LATER = [name for name in POLICIES if name != "monitor"]


def controller(policy):
    return setup(policy=policy, **OPTIONS.get(policy, {}))


def numbers_of(decay):
    return {name: (module.weight_decay, module.lr_ratio) for name, module in decay.modules.items()}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("earlier", EARLIER)
def test_it_begins_at_the_next_update(earlier, later):
    if earlier == later:
        return
    model, optimizer, before = controller(earlier)
    for number in range(SINCE):
        update(model, optimizer, before, number)
    found, expected = controller(later), controller(later)
    found[2].load_state_dict(before.state_dict())
    for run in (found, expected):  # the same weights and gradients
        update(*run, SINCE)
    assert numbers_of(found[2]) == numbers_of(expected[2])
    assert decays_in(found[1]) == decays_in(expected[1])
    again = controller(later)
    again[2].load_state_dict(found[2].state_dict())
    assert again[2].step() is None or POLICIES[later].each_update, "it has begun once"


def test_a_state_that_it_did_not_act_on_yet_is_passed_on():
    model, optimizer, none = controller("none")
    update(model, optimizer, none, 0)
    first, second = controller("cautious"), controller("cautious")
    first[2].load_state_dict(none.state_dict())
    second[2].load_state_dict(first[2].state_dict())
    update(*second, 1)
    assert set(decays_in(second[1]).values()) == {0.1}


def test_nothing_is_measured_after_until():
    _, _, decay = controller("none")
    for _ in range(SINCE):
        decay.step()
    other = setup(policy="alphadecay", until=2)
    other[2].load_state_dict(decay.state_dict())
    assert update(*other, SINCE) is None
    assert set(decays_in(other[1]).values()) == {0.1}


@pytest.mark.parametrize("policy", ["none", "uniform", "static", "cautious"])
def test_a_lag_is_nothing_to_what_measures_nothing(policy):
    model, optimizer, decay = setup(policy=policy, lag=1)
    refresh = update(model, optimizer, decay, 0)
    assert (refresh.step, refresh.written_at) == (0, 0)
