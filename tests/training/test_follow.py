"""decay.follow: biases have the decay of their matrix, on every kind of engine, and after a resume."""

from __future__ import annotations

import json

import pytest
import torch

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.resume import decide_start
from tests.training.runs import SIZES, final_weights, tiny_options, train_on

pytestmark = [pytest.mark.launcher, pytest.mark.ranks]


@pytest.fixture
def options(tmp_path):
    """A tiny LLaMA whose attention has biases."""
    model = tmp_path / "biased.json"
    model.write_text(json.dumps({**SIZES, "attention_bias": True}))
    strong = {"optimizer__lr": 0.01, "decay__weight_decay": 5.0, "decay__untuned": "zero"}
    settled = {"optimizer__eps": 1e-3}  # a bias of k has no gradient but rounding, which Adam would blow up
    schedule = {"train__steps": 12, "decay__interval": 5}
    return tiny_options(tmp_path, model__name=str(model), **schedule, **strong, **settled)


def test_followers_train_alike_on_all_engines_and_go_on_after_a_stop(tmp_path, options):
    following = [*options, "--decay.follow=[bias]"]
    alone = train_on(1, "ddp", tmp_path / "alone", following)
    expected = final_weights(tmp_path / "alone")
    for more in ([*following, "--train.stop_after=7"], following):
        train_on(2, "3", tmp_path / "zero3", more)
    train_on(2, "fsdp2", tmp_path / "fsdp2", following)
    for engine in ("zero3", "fsdp2"):
        found = final_weights(tmp_path / engine)
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), (engine, name)
    plain = train_on(1, "ddp", tmp_path / "plain", options)
    assert plain["decay"][0]["modules"].keys() == alone["decay"][0]["modules"].keys()
    stayed = final_weights(tmp_path / "plain")
    biases = [name for name in expected if name.endswith("bias") and "k_proj" not in name]
    assert len(biases) == 2 * 3
    assert all((stayed[name] - expected[name]).abs().max() > 1e-3 for name in biases)
    changed = load_config("demo", [option.removeprefix("--") for option in options])
    with pytest.raises(
        UserError, match=r"decay\.follow: found \(\), the run in .* was begun with \('bias',\)"
    ):
        decide_start(tmp_path / "fsdp2", changed, "auto", False, {})
