"""The same run on every stage and number of ranks, and the same as plain torch."""

from __future__ import annotations

import functools

import pytest
import torch

from alphadecay_dist.checkpoint.reader import read
from alphadecay_dist.checkpoint.restore import stored_weights
from alphadecay_dist.training.tasks.language import model as models
from alphadecay_dist.training.tasks.language.initial_values import random_values
from tests.training.runs import distance, final_weights, plain_torch, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

CLOSE = 2e-5  # relative distance of fp32 weights after a run; what ignores the decay is 100 times off

STEPS = 16
ENGINES = [("1", 2), ("2", 3), ("3", 1), ("3", 2), ("3_offload", 2), ("hsdp", 2), ("fsdp2", 1), ("fsdp2", 3)]
ENGINES += [("ddp", 2)]
PADDED = [("2", 2), ("3", 3), ("fsdp2", 2)]
EACH = [(engine, ranks) for engine in ("1", "2", "3", "fsdp2", "ddp") for ranks in (1, 2, 3)]
EACH += [("3_offload", 2), ("hsdp", 2)]
CASES = [
    pytest.param(data, *case, marks=() if case in shown else pytest.mark.long)
    for data, shown in (("packed", ENGINES), ("padded", PADDED))
    for case in EACH
]
SHARDED = ("3", "3_offload", "fsdp2")  # whose owners receive pieces


def options_of(folder, **changes):
    return tiny_options(
        folder, **{"train__steps": STEPS, "decay__interval": 5, "logging__spectra": 2, **changes}
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """By kind of data: options, the run of one rank under ZeRO-1, and the plain loop without an engine."""

    @functools.cache
    def made(data):
        folder = tmp_path_factory.mktemp(data)
        options = options_of(folder, data__pack=data == "packed")
        zero = train_on(1, "1", folder / "reference", options)
        return folder, options, zero, plain_torch(options, folder / "reference" / "tokenizer.model")

    return made


@pytest.mark.parametrize(("data", "stage", "world_size"), CASES)
def test_every_engine_is_the_plain_loop(reference, data, stage, world_size):
    folder, options, zero, plain = reference(data)
    run = train_on(world_size, stage, folder / f"zero{stage}_{world_size}", options)
    assert [line["step"] for line in run["metrics"]] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(plain["losses"], abs=1e-5)
    losses = [line["loss"] for line in zero["metrics"]]
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(losses, abs=1e-5)
    assert [line["grad_norm"] for line in run["metrics"]] == pytest.approx(plain["norms"], rel=1e-4)
    assert [line["step"] for line in run["decay"]] == [0, 5, 10, 15]
    for line, refresh, other in zip(run["decay"], plain["refreshes"], zero["decay"], strict=True):
        assert list(line["modules"]) == list(refresh.modules)
        tolerance = 1e-6 if line["step"] == 0 else 1e-5
        for name, module in line["modules"].items():
            assert module["alpha"] == pytest.approx(refresh.modules[name].alpha, abs=tolerance)
            assert module["alpha"] == pytest.approx(other["modules"][name]["alpha"], abs=tolerance)
            assert module["weight_decay"] == pytest.approx(refresh.modules[name].weight_decay, abs=1e-4)
            assert module["status"] == "assigned"
        assert {module["owner"] for module in line["modules"].values()} == set(range(world_size))
        assert (max(line["bytes_received"]) > 0) == (stage in SHARDED and world_size > 1)
    _check_spectra(run, zero)
    assert distance(final_weights(folder / f"zero{stage}_{world_size}"), plain["weights"]) < CLOSE


def _check_spectra(run, other):
    """Of every second refresh, with the alphas of that refresh; on another engine the same up to rounding."""
    assert [line["step"] for line in run["spectra"]] == [0, 10]
    refreshes = {line["step"]: line["modules"] for line in run["decay"]}
    for line, expected in zip(run["spectra"], other["spectra"], strict=True):
        assert list(line["modules"]) == list(expected["modules"]) == list(refreshes[line["step"]])
        for name, histogram in line["modules"].items():
            reference = expected["modules"][name]
            assert histogram["alpha"] == refreshes[line["step"]][name]["alpha"]
            assert (histogram["eigenvalues"], histogram["tail"]) == (64, 32)
            assert 62 <= sum(histogram["counts"]) <= 64  # the smallest may be lost in rounding
            for key in ("high", "xmin"):
                assert histogram[key] == pytest.approx(reference[key], rel=1e-3)


def alpha_by_svd(weight):
    """The Hill estimator at the median, by fp64 svdvals."""
    values = torch.linalg.svdvals(weight.detach().double()).square().flip(0)
    tail = values[values.numel() // 2 :].log()
    return 1 + tail.numel() / float((tail - tail[0]).sum())


def schedule_of(run):
    """The decays of a run as decay.jsonl has them: by step, by module."""
    return {
        line["step"]: {name: module["weight_decay"] for name, module in line["modules"].items()}
        for line in run["decay"]
    }


def test_stage_0_runs_as_well(tmp_path):
    options = tiny_options(tmp_path, train__steps=12)
    run = train_on(2, "0", tmp_path / "zero0", options)
    expected = train_on(2, "1", tmp_path / "zero1", options)
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(
        [line["loss"] for line in expected["metrics"]], abs=1e-5
    )
    assert run["decay"][0]["modules"] == expected["decay"][0]["modules"]


def test_bf16_runs_start_from_the_same_rounded_weights_on_every_engine(tmp_path):
    options = tiny_options(tmp_path, train__dtype="bfloat16", train__steps=12)
    runs = [
        train_on(world_size, stage, tmp_path / f"zero{stage}_{world_size}", options)
        for stage, world_size in [
            ("1", 2),
            ("3_offload", 2),
            ("fsdp2", 2),
            ("ddp", 1),
        ]
    ]
    shapes = models.build_on_meta(models.read_model_config(str(tmp_path / "tiny.json"), 32))
    values = random_values(shapes, seed=0)
    for run in runs:
        for name, module in run["decay"][0]["modules"].items():
            rounded = values(f"{name}.weight").bfloat16()
            assert module["alpha"] == pytest.approx(alpha_by_svd(rounded), abs=1e-5)
            assert module["alpha"] == runs[0]["decay"][0]["modules"][name]["alpha"]
            assert module["weight_decay"] == runs[0]["decay"][0]["modules"][name]["weight_decay"]
        first, last = run["metrics"][0]["loss"], run["metrics"][-1]["loss"]
        assert last < first - 0.1
        assert last == pytest.approx(runs[0]["metrics"][-1]["loss"], abs=0.05)


@pytest.mark.parametrize(
    ("optimizer", "stage", "world_size"),
    [
        *(("adamw", engine, 2) for engine in ("1", "3", "fsdp2", "ddp")),
        ("adam", "3", 2),
        ("adam", "ddp", 2),
        *(pytest.param("adam", engine, 2, marks=pytest.mark.long) for engine in ("1", "fsdp2")),
    ],
)
def test_written_decays_are_what_the_optimizer_applies(tmp_path, optimizer, stage, world_size):
    strength = {"adam": 0.01, "adamw": 1.0}[optimizer]
    options = options_of(tmp_path, data__pack=True, optimizer__name=optimizer, decay__weight_decay=strength)
    run = train_on(world_size, stage, tmp_path / "run", options)
    weights = final_weights(tmp_path / "run")
    tokenizer = tmp_path / "run" / "tokenizer.model"
    schedule = schedule_of(run)
    assert distance(weights, plain_torch(options, tokenizer, schedule)["weights"]) < CLOSE

    ignored = plain_torch(options, tokenizer, schedule={})
    assert distance(weights, ignored["weights"]) > 100 * CLOSE
    names = list(schedule[0])
    dealt_wrong = {
        step: dict(zip(names, [*list(decays.values())[1:], decays[names[0]]], strict=True))
        for step, decays in schedule.items()
    }
    assert distance(weights, plain_torch(options, tokenizer, dealt_wrong)["weights"]) > 100 * CLOSE


def test_the_uniform_policy_keeps_the_base_decay(tmp_path):
    options = options_of(tmp_path, decay__policy="uniform")
    run = train_on(2, "2", tmp_path / "run", options)
    assert run["decay"] == []
    plain = plain_torch(options, tmp_path / "run" / "tokenizer.model", schedule={})
    assert distance(final_weights(tmp_path / "run"), plain["weights"]) < CLOSE


@pytest.mark.parametrize(("stage", "world_size"), [("2", 1), ("3", 3), ("fsdp2", 3)])
def test_logged_alphas_are_those_of_the_checkpointed_weights(tmp_path, stage, world_size):
    options = options_of(tmp_path, data__pack=True, checkpoint__every=5)
    run = train_on(world_size, stage, tmp_path / "run", options)
    for line in run["decay"][1:]:
        checkpoint = read(tmp_path / "run" / "checkpoints" / f"step-{line['step']:08d}")
        weights = stored_weights(checkpoint)
        for name, module in line["modules"].items():
            assert module["alpha"] == pytest.approx(alpha_by_svd(weights[f"{name}.weight"].read()), abs=1e-5)
