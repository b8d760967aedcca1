"""Muon through the trainer: the same run on every engine, and resumed on others."""

from __future__ import annotations

import json

import pytest

from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.checkpoint.restore import stored_tensors
from tests.training.runs import ROOT, distance, final_weights, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

STEPS = 6
MUON = {
    "optimizer__name": "muon",
    "optimizer__muon_lr": 0.006,
    "optimizer__momentum": 0.9,
    "train__clip": 0,
    "train__steps": STEPS,
    "decay__interval": 3,
    "data__pack": True,
}


def options_of(folder, **more):
    config = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    config["zero_optimization"]["reduce_scatter"] = False
    (folder / "zero3.json").write_text(json.dumps(config))
    return tiny_options(folder, **{**MUON, **more})


def engine_of(folder, name):
    return str(folder / "zero3.json") if name == "3" else name


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muon")
    options = options_of(folder)
    return folder, options, train_on(1, "ddp", folder / "one", options)


def losses(run):
    return [line["loss"] for line in run["metrics"]]


# DeepSpeed rounds its products elsewhere than torch's Muon does.
ENGINES = [("ddp", 2, 2e-4), ("fsdp2", 3, 2e-4), ("hsdp", 2, 2e-4), ("2", 3, 2e-3), ("3", 2, 2e-3)]


@pytest.mark.parametrize(("engine", "world_size", "close"), ENGINES)
def test_every_engine_trains_as_one_process(reference, engine, world_size, close):
    folder, options, one = reference
    run = train_on(world_size, engine_of(folder, engine), folder / f"{engine}_{world_size}", options)
    assert losses(run) == pytest.approx(losses(one), abs=close)
    assert losses(run)[-1] < losses(run)[0] - 0.1
    assert [line["step"] for line in run["decay"]] == [0, 3]
    for line, expected in zip(run["decay"], one["decay"], strict=True):
        for name, module in line["modules"].items():
            found = expected["modules"][name]["weight_decay"]
            assert module["weight_decay"] == pytest.approx(found, abs=1e-2)


JOURNEYS = {
    "fsdp2 of 2, ddp of 1, fsdp2 of 3": ((("fsdp2", 2), ("ddp", 1), ("fsdp2", 3)), 2e-4),
    "zero2 of 2, zero3 of 3, zero1 of 1, fsdp2 of 2": ((("2", 2), ("3", 3), ("1", 1), ("fsdp2", 2)), 2e-3),
}


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_run_goes_on_anywhere(reference, journey):
    folder, options, one = reference
    output, (walk, close) = folder / journey.replace(" ", "_"), JOURNEYS[journey]
    for number, (engine, world_size) in enumerate(walk, 1):
        stop = STEPS if number == len(walk) else number
        run = train_on(
            world_size, engine_of(folder, engine), output, [*options, f"--train.stop_after={stop}"]
        )
        kinds = stored_tensors(newest(output / "checkpoints"))
        assert set(kinds["model.layers.0.mlp.up_proj.weight"]) == {"weight", "momentum_buffer"}
        assert set(kinds["lm_head.weight"]) == {"weight", "exp_avg", "exp_avg_sq"}
    assert losses(run) == pytest.approx(losses(one), abs=close)
    assert distance(final_weights(output), final_weights(folder / "one")) < 50 * close
