"""decay.apply: both writers train the same run, and auto says which it picked."""

from __future__ import annotations

import pytest
import torch

from alphadecay_dist import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.optimizer import build_optimizer, pick_apply
from alphadecay_dist.training.resume import decide_start
from tests.engines.tiny import TUNABLE, Uneven
from tests.training.runs import final_weights, tiny_options, train_on

EVEN = {
    "train__steps": 12,
    "decay__interval": 5,
    "train__clip": 0.0,  # the norm's sum takes the weights as they lie in the groups
    "data__pack": True,
}


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize(("dtype", "asked"), [("float32", "premultiply"), ("bfloat16", "auto")])
def test_the_trainer_gives_the_same_weights_with_either(tmp_path, dtype, asked):
    runs = {}
    for apply in ("groups", asked):
        options = tiny_options(tmp_path, **EVEN, train__dtype=dtype, decay__apply=apply)
        runs[apply] = train_on(2, "2", tmp_path / apply, options)
    uniform = tiny_options(tmp_path, **EVEN, train__dtype=dtype, decay__policy="uniform")
    train_on(2, "2", tmp_path / "uniform", uniform)
    own, uniform = final_weights(tmp_path / "groups"), final_weights(tmp_path / "uniform")
    shared = final_weights(tmp_path / asked)
    assert all(torch.equal(value, shared[name]) for name, value in own.items())
    decays = [[line["modules"] for line in run["decay"]] for run in runs.values()]
    assert decays[0] == decays[1]
    assert not any(torch.equal(value, uniform[name]) for name, value in own.items() if "proj" in name)


@pytest.mark.launcher
@pytest.mark.ranks
def test_uniform_in_two_groups_is_uniform_in_many(tmp_path):
    weights = []
    for apply in ("groups", "premultiply"):
        options = tiny_options(tmp_path, **EVEN, decay__policy="uniform", decay__apply=apply)
        assert train_on(2, "3", tmp_path / apply, options)["decay"] == []
        weights.append(final_weights(tmp_path / apply))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.launcher
@pytest.mark.ranks
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    options = tiny_options(tmp_path, **EVEN, decay__apply="premultiply")
    train_on(2, "2", tmp_path / "whole", options)
    for more in ([*options, "--train.stop_after=7"], options):
        train_on(2, "2", tmp_path / "parts", more)
    other = tmp_path / "parts"
    for key, value in (("decay.apply", "groups"), ("decay.policy", "uniform")):
        changed = tuple(option.removeprefix("--") for option in (*options, f"--{key}={value}"))
        with pytest.raises(UserError, match=rf"{key}: found '{value}', the run in .* was begun with"):
            decide_start(other, config_of(*changed), "auto", False, {})
    whole, parts = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def config_of(*overrides):
    return load_config("demo", overrides)


def test_auto_says_what_it_picked_and_why():
    decay, line = pick_apply(config_of("decay.apply=auto", "optimizer.name=adamw"), None)
    assert decay.apply == "premultiply"
    assert line == (
        "decay.apply=auto: premultiply, because AdamW on this engine allows it, and two param groups "
        "update faster than many"
    )
    decay, line = pick_apply(config_of("decay.apply=auto", "optimizer.name=adam"), None)
    assert (decay.apply, "groups, because the optimizer is adam" in line) == ("groups", True)
    decay, line = pick_apply(config_of("decay.apply=auto", "optimizer.name=adamw"), "of NVMe")
    assert (decay.apply, "groups, because of NVMe" in line) == ("groups", True)


def test_what_was_asked_for_is_taken_or_refused():
    assert pick_apply(config_of(), "of NVMe") == (config_of().decay, None)
    asked = config_of("decay.apply=premultiply", "optimizer.name=adamw")
    assert pick_apply(asked, None) == (asked.decay, None)
    with pytest.raises(UserError, match=r"decay\.apply: found 'premultiply', expected .*: of NVMe"):
        pick_apply(asked, "of NVMe")


@pytest.mark.parametrize(("policy", "own"), [("alphadecay", 0.0), ("uniform", 0.1)])
def test_two_groups_hold_the_decay_that_nobody_multiplies_in(policy, own):
    config = config_of("decay.apply=premultiply", f"decay.policy={policy}", "decay.weight_decay=0.1")
    optimizer = build_optimizer(Uneven([*TUNABLE, (5, 3)]), config.optimizer, config.decay, fused=False)
    assert [(group["module"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ("tuned", own),
        ("untuned", 0.1),
    ]
