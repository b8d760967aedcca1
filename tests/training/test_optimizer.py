"""The learning rate of each update."""

from __future__ import annotations

import itertools
import math

import pytest

from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.optimizer import build_optimizer, learning_rate
from alphadecay_dist.training.recipe import DecayConfig, OptimizerConfig
from tests.models import Blocks
from tests.training.runs import distance, final_weights, plain_torch, tiny_options, train_on


def rates(steps, **options):
    config = OptimizerConfig(**{"lr": 1.0, "warmup": 0.1, "min_lr_ratio": 0.1, **options})
    return [learning_rate(update, steps, config) for update in range(1, steps + 1)]


def test_hand_values_of_cosine_after_warm_up():
    found = rates(20, warmup=0.2)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[11] == pytest.approx(0.55)  # half-way down: 0.1 + 0.9 / 2
    assert found[7] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert found[15] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2)
    assert found[19] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [10, 37, 1000])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule, steps):
    warmup = round(0.1 * steps)
    found = rates(steps, schedule=schedule, lr=3e-3)
    assert found[:warmup] == pytest.approx([3e-3 * (i + 1) / warmup for i in range(warmup)])
    assert max(found) == pytest.approx(3e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_the_last_update_has_the_least_rate(schedule, ratio):
    found = rates(50, schedule=schedule, min_lr_ratio=ratio)
    assert found[-1] == pytest.approx(ratio, abs=1e-12)
    assert all(later <= before + 1e-12 for before, later in itertools.pairwise(found[4:]))


def test_linear_falls_in_equal_steps():
    found = rates(12, warmup=2, schedule="linear", min_lr_ratio=0.0)
    assert found == pytest.approx([0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0], abs=1e-12)


def test_constant_stays_at_the_peak():
    assert rates(10, warmup=2, schedule="constant")[1:] == [1.0] * 9


def test_warm_up_by_number_is_that_many_updates_whatever_the_length():
    for steps in (10, 100):
        assert rates(steps, warmup=5)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_warm_up_the_first_update_has_begun_to_fall():
    assert rates(4, warmup=0, schedule="linear", min_lr_ratio=0.0) == pytest.approx([0.75, 0.5, 0.25, 0])


def test_a_warm_up_longer_than_the_run_never_passes_its_line():
    assert rates(3, warmup=10) == pytest.approx([0.1, 0.2, 0.3])


def test_a_run_of_one_update_has_a_rate():
    assert rates(1) == pytest.approx([0.1])
    assert rates(1, warmup=1) == pytest.approx([1.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_zero_first_gives_each_update_the_rate_of_the_one_before_it(schedule, warmup):
    usual = rates(12, warmup=warmup, schedule=schedule)
    shifted = rates(12, warmup=warmup, schedule=schedule, zero_first=True)
    assert shifted == [0.0 if warmup else 1.0, *usual[:-1]]


def test_the_released_schedule_has_factor_0_at_update_0_and_1_after_the_warm_up():
    config = load_config("llama_60m", ["optimizer.zero_first"])
    found = [learning_rate(k + 1, 10_000, config.optimizer) / 1e-3 for k in (0, 1, 1000, 5500, 9999)]
    last = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 8999 / 9000))  # the least ratio is approached
    assert found == pytest.approx([0, 0.001, 1, 0.55, last])
    assert found[-1] > 0.1


def test_the_published_schedule_peaks_after_a_tenth_and_ends_at_a_tenth():
    config = load_config("llama_60m")
    found = [
        learning_rate(update, config.train.steps, config.optimizer) for update in (1, 1000, 5500, 10_000)
    ]
    assert found == pytest.approx([1e-6, 1e-3, 0.55e-3, 1e-4])


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize(("engine", "world_size"), [("1", 2), ("fsdp2", 1)])
def test_an_update_with_the_rate_0_changes_no_weight_on_any_engine(tmp_path, engine, world_size):
    options = tiny_options(tmp_path, train__steps=5, optimizer__zero_first="true", optimizer__warmup=2)
    run = train_on(world_size, engine, tmp_path / "run", options)
    expected = [0, 0.0015, 0.003]
    assert [line["lr"] for line in run["metrics"][:3]] == pytest.approx(expected)
    plain = plain_torch(options, tmp_path / "run" / "tokenizer.model")
    assert distance(final_weights(tmp_path / "run"), plain["weights"]) < 2e-5
    assert [line["loss"] for line in run["metrics"]] == pytest.approx(plain["losses"], abs=1e-5)


def test_a_recipes_memory_budget_is_muons_too():
    config, decay = OptimizerConfig(name="muon"), DecayConfig(memory_budget=12345)
    optimizer = build_optimizer(Blocks(), config, decay, fused=False, engine="fsdp2")
    assert optimizer._muon._budget == 12345
