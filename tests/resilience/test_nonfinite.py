"""A loss or a gradient that is not finite on one rank, under each engine and each policy."""

from __future__ import annotations

import math

import pytest
import torch

from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.checkpoint.restore import stored_weights
from alphadecay_dist.condition.sample import CONDITION
from alphadecay_dist.errors import RunError
from alphadecay_dist.training.bad_updates import BadUpdates
from alphadecay_dist.training.outputs.run_files import read_lines, read_status
from tests.multirank import run_ranks
from tests.resilience.poison import loss_plus_nan, poisoned
from tests.training.runs import argv_of, left_behind, tiny_options

BAD = 6  # the update that is not finite
ENGINES = ["fsdp2", "ddp", *(pytest.param(stage, marks=pytest.mark.long) for stage in "12"), "3"]


def loss_times_inf(loss):
    return loss * math.inf


def gradient_nan(loss):
    loss.register_hook(lambda gradient: gradient * math.nan)
    return loss


def run_poisoned(folder, engine, policy, poison=loss_plus_nan, updates=(BAD,), **changes):
    """Exit codes, status and what was left of a run of 9 updates."""
    sizes = {"train__steps": 9, "checkpoint__every": 5, "train__on_nonfinite": policy, **changes}
    output = folder / policy
    codes = run_ranks(poisoned, 2, argv_of(engine, output, tiny_options(folder, **sizes)), poison, updates)
    for path in output.glob("*.jsonl"):
        assert "NaN" not in path.read_text()
        assert "Infinity" not in path.read_text()
    return codes, read_status(output), left_behind(output)


def steps_of(run):
    return [line["step"] for line in run["metrics"]]


def samples(output):
    """Updates and statuses of the spectral condition's samples."""
    lines = read_lines(output / CONDITION)
    return [(line["step"], {own["status"] for own in line["matrices"].values()}) for line in lines]


def weights_at(output, step):
    checkpoint = read(output / "checkpoints" / f"step-{step:08d}")
    return {name: weight.read() for name, weight in stored_weights(checkpoint).items()}


@pytest.mark.kills
@pytest.mark.parametrize("engine", ENGINES)
def test_stop_fails_with_one_line_and_leaves_the_checkpoint(tmp_path, engine):
    codes, status, run = run_poisoned(tmp_path, engine, "stop")
    assert codes == [1, 1]
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", BAD - 1, 1)
    assert status["reason"].startswith(f"update {BAD}: loss nan, gradient norm ")
    assert steps_of(run) == list(range(1, BAD))
    assert newest(tmp_path / "stop" / "checkpoints").manifest.step == 5


@pytest.mark.kills
@pytest.mark.parametrize("engine", ENGINES)
def test_skip_changes_no_weight_and_rollback_repeats_no_data(tmp_path, engine):
    sampled = {"telemetry__spectral_condition": BAD - 1}  # before the first update, and at the bad one
    codes, status, skipped = run_poisoned(tmp_path, engine, "skip", checkpoint__every=1, **sampled)
    assert samples(tmp_path / "skip") == [(0, {"ok"}), (BAD - 1, {"non_finite_gradient"})]
    assert (codes, status["state"]) == ([0, 0], "finished")
    assert steps_of(skipped) == list(range(1, 10))
    bad = skipped["metrics"][BAD - 1]
    assert (bad["loss"], bad["grad_norm"], bad["skipped"]) == (None, None, True)
    assert [line["step"] for line in skipped["metrics"] if "skipped" in line] == [BAD]
    before, after, later = (weights_at(tmp_path / "skip", step) for step in (BAD - 1, BAD, BAD + 1))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(after[name], later[name]) for name in before)

    codes, status, back = run_poisoned(tmp_path, engine, "rollback", **sampled)
    assert samples(tmp_path / "rollback") == [(0, {"ok"}), (BAD - 1, {"ok"})]
    assert (codes, status["state"]) == ([0, 0], "finished")
    assert steps_of(back) == list(range(1, 10))
    losses = [line["loss"] for line in back["metrics"]]
    # The weights of update 5, and the first data after those of the bad update.
    assert losses[BAD - 1] == skipped["metrics"][BAD]["loss"]
    assert losses[: BAD - 1] == [line["loss"] for line in skipped["metrics"][: BAD - 1]]


@pytest.mark.kills
@pytest.mark.parametrize(
    ("engine", "dtype", "poison"),
    [
        ("0", "float32", gradient_nan),
        ("fsdp2", "bfloat16", loss_times_inf),
        ("fsdp2", "bfloat16", gradient_nan),
        ("2", "bfloat16", gradient_nan),
        ("3", "bfloat16", loss_times_inf),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                ("0", "float32", loss_times_inf),
                ("2", "bfloat16", loss_times_inf),
                ("3", "bfloat16", gradient_nan),
            ]
        ),
    ],
)
def test_whatever_is_not_finite_is_not_applied(tmp_path, engine, dtype, poison):
    changes = {"train__dtype": dtype, "checkpoint__every": 1, "train__steps": BAD + 1}
    codes, _, run = run_poisoned(tmp_path, engine, "skip", poison, **changes)
    assert codes == [0, 0]
    assert [line["step"] for line in run["metrics"] if "skipped" in line] == [BAD]
    assert (run["metrics"][BAD - 1]["loss"] is None) == (poison is loss_times_inf)
    before, after, later = (weights_at(tmp_path / "skip", step) for step in (BAD - 1, BAD, BAD + 1))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(after[name], later[name]) for name in before)


@pytest.mark.kills
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_more_than_max_skips_in_a_row_fail_the_run(tmp_path, policy):
    changes = {"updates": tuple(range(BAD, 100)), "train__max_skips": 2}
    codes, status, run = run_poisoned(tmp_path, "ddp", policy, **changes)
    assert codes == [1, 1]
    assert status["state"] == "failed"
    assert f"train.on_nonfinite={policy} has tolerated 2 before it" in status["reason"]
    assert steps_of(run) == list(range(1, BAD + 2 if policy == "skip" else BAD))


@pytest.mark.kills
def test_there_is_no_rollback_before_the_first_checkpoint(tmp_path):
    codes, status, _ = run_poisoned(tmp_path, "ddp", "rollback", updates=(2,))
    assert codes == [1, 1]
    assert "update 2: loss nan" in status["reason"]
    assert "no checkpoint yet" in status["reason"]


def test_a_good_update_ends_a_row_of_skips_and_a_checkpoint_one_of_rollbacks():
    for policy, ends, ends_not in (("skip", "applied", "saved"), ("rollback", "saved", "applied")):
        bad = BadUpdates(policy, 1)
        bad.count("one")
        getattr(bad, ends)()
        bad.count("two")
        getattr(bad, ends_not)()
        again = BadUpdates(policy, 1)
        again.load(bad.state())
        with pytest.raises(RunError, match=r"three; .* has tolerated 1"):
            again.count("three")
        assert again.total == 3
