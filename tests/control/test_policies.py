"""A new policy is a row of the table: "Add a policy" of CONTRIBUTING.md, walked in a package of its own."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import pytest
import torch

import train
from alphadecay_dist import AlphaDecay, UserError
from alphadecay_dist.control.protocol import FixedDecay, controller_for
from alphadecay_dist.decay.policies import POLICIES
from alphadecay_dist.decay.settings import Settings, settings_from
from alphadecay_dist.training.config import load_config
from tests.controllers import decays_in, setup, update
from tests.multirank import run_ranks
from tests.training.runs import left_behind, tiny_options

TOY = '''
"""A decay that grows with depth: a constant per matrix, mapped like an alpha, moved after two updates."""

import re

from alphadecay_dist.control.measure import Measure
from alphadecay_dist.control.measures import MEASURES
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.maps import by_shape
from alphadecay_dist.decay.policies import MATRIX_DECAY, POLICIES, Policy


class Depth(Measure):
    def __init__(self, measured):
        self._weights = measured.weights

    def measure(self):
        depths = {weight.name: float(re.search(r"\\d+", weight.name)[0]) for weight in self._weights}
        return {name: Measurement(None, depth, "ok", 0) for name, depth in depths.items()}

    def received_by_rank(self):
        return (0,)


def after_two(settings, updates):
    return updates == 2


MEASURES["depth"] = Depth
POLICIES["by_depth"] = Policy("depth", by_shape, MATRIX_DECAY, after_two)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of a package that adds a policy when it is imported."""
    folder = tmp_path / "packages" / "toy_policies"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(TOY)
    return folder.parent


def add_policy(folder):
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("toy_policies")
    finally:
        sys.path.remove(str(folder))


def steps_of_toy(folder):
    """The decays before each of four updates, and what a resume after the third has."""
    add_policy(folder)
    model, optimizer, decay = setup(policy="by_depth")
    found, states = [], []
    for number in range(4):
        update(model, optimizer, decay, number)
        found.append(decays_in(optimizer))
        states.append(decay.state_dict())
    _, other, again = setup(policy="by_depth")
    again.load_state_dict(states[2])
    assert decays_in(other) == found[2]
    return found


@pytest.mark.ranks
def test_a_row_of_a_package_of_its_own_moves_decays_on_ranks(toy):
    first, second = run_ranks(steps_of_toy, 2, toy)
    assert first == second
    expected = {f"layers.{i}.up": 0.1 * (0.5 + i / 4 * 2.5) for i in range(5)}
    assert set(first[1].values()) == {0.1}
    for decays in first[2:]:
        assert {name: decays[name] for name in expected} == pytest.approx(expected)


def train_toy(folder, argv):
    add_policy(folder)
    return train.main(argv)


@pytest.mark.launcher
@pytest.mark.ranks
def test_the_trainer_takes_it_from_a_recipe_and_resumes_it(toy, tmp_path):
    options = [*tiny_options(tmp_path, decay__policy="by_depth", train__steps=6), "--output_dir"]
    for more in (["--train.stop_after=4"], []):
        assert run_ranks(train_toy, 1, toy, [*options, str(tmp_path / "run"), *more]) == [0]
    (refresh,) = left_behind(tmp_path / "run")["decay"]
    modules = refresh["modules"]
    assert refresh["step"] == 2
    assert {module["weight_decay"] for name, module in modules.items() if "layers.0" in name} == {0.6666}
    assert {module["weight_decay"] for name, module in modules.items() if "layers.1" in name} == {5.0}
    assert run_ranks(train_toy, 1, toy, [*options, str(tmp_path / "lagged"), "--decay.lag=3"]) == [2]


def test_a_policy_without_a_background_has_no_lag(toy, monkeypatch):
    row = dataclasses.replace(POLICIES["alphadecay"], overlaps=False)
    monkeypatch.setitem(POLICIES, "in_front", row)
    with pytest.raises(UserError, match="lag: found 2 with policy 'in_front', expected 0"):
        Settings(policy="in_front", lag=2)


def test_uniform_has_nothing_to_do_in_the_trainer():
    model, optimizer, _ = setup()
    decay = controller_for(model, optimizer, Settings(policy="uniform"), engine=None, dtype=torch.float32)
    assert isinstance(decay, FixedDecay)
    before = decays_in(optimizer)
    assert [decay.step(), decay.log(), decay.state_dict()] == [None, {}, {}]
    decay.load_state_dict({"alphadecay": "of another policy"})
    assert decays_in(optimizer) == before


def test_a_cautious_uniform_is_the_policy_cautious_in_the_trainer():
    weights = []
    for settings in (
        Settings(policy="uniform", cautious=True),
        Settings(policy="cautious"),
        Settings(policy="uniform"),
    ):
        model, optimizer, _ = setup()
        decay = controller_for(model, optimizer, settings, engine=None, dtype=torch.float32)
        update(model, optimizer, decay, 0)
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_factors_of_no_module_are_refused_before_any_update():
    with pytest.raises(UserError, match="factors: 'nothing' matches no tuned module"):
        setup(policy="static", factors="nothing=2")


def test_uniform_writes_the_base_decay_over_what_another_policy_left():
    model, optimizer, decay = setup()
    update(model, optimizer, decay, 0)
    assert len(set(decays_in(optimizer).values())) > 1
    AlphaDecay(model, optimizer, policy="uniform", weight_decay=0.1).step()
    assert set(decays_in(optimizer).values()) == {0.1}


def test_a_recipes_decay_section_is_the_librarys_settings():
    section = load_config("demo", ["decay.metric=stable_rank", "decay.weight_decay=0.3"]).decay
    model, optimizer, _ = setup()
    decay = AlphaDecay(model, optimizer, section)
    assert (decay.settings.metric, decay.settings.weight_decay) == ("stable_rank", 0.3)
    assert AlphaDecay(model, optimizer, section, interval=7).settings == dataclasses.replace(
        section, interval=7
    )


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"weight_decay": 0.1, "min_ration": 0.5}, TypeError, "'min_ration'; did you mean 'min_ratio'"),
        ({"interval": 5}, TypeError, "missing the keyword argument 'weight_decay'"),
        (
            {"weight_decay": 0.1, "policy": "awdd"},
            UserError,
            "policy: found 'awdd', expected one of uniform",
        ),
        ({"weight_decay": 0.1, "cautious": "no"}, UserError, "cautious: found 'no', expected true or false"),
        ({"weight_decay": 0.1, "factors": {"mlp": 2}}, UserError, "factors: found .*expected a text such as"),
        ({"weight_decay": 0.1, "device": "gpu"}, UserError, "device: found 'gpu', expected one of auto, cu"),
        ({"weight_decay": 0.1, "memory_budget": 0}, UserError, "memory_budget: found 0, expected a whole"),
    ],
)
def test_a_wrong_argument_is_named(given, error, words):
    with pytest.raises(error, match=words):
        settings_from(None, given)


def test_settings_may_be_no_dict():
    with pytest.raises(UserError, match=r"settings: found .*expected Settings"):
        settings_from({"weight_decay": 0.1}, {})
