"""Every policy through the trainer: a run in two parts is bit for bit the unbroken one."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO

import pytest

import train
from alphadecay_dist.decay.policies import POLICIES
from tests.multirank import run_ranks
from tests.training.runs import argv_of, left_behind, same_weights, tiny_options, without_times

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]

STEPS, STOP = 6, 4
SETTINGS = {
    "awd": {"decay__factor": 0.2},
    "llr": {"decay__until": 0.9, "decay__min_ratio": 1, "decay__max_ratio": 5},
    "static": {"decay__factors": "up_proj=2"},
    "alphadecay": {"decay__cautious": True},
}
SHORT = {"train__steps": STEPS, "decay__interval": 3, "decay__apply": "auto", "optimizer__warmup": 2}
SHORT["logging__spectra"] = 1


def train_each(runs):
    """The exit codes of several runs in turn, in one start of the ranks, and what each said at its end."""
    codes, closing = [], []
    for argv in runs:
        with redirect_stdout(StringIO()) as printed:
            codes.append(train.main(argv))
        closing += printed.getvalue().splitlines()[-1:]
    return codes, closing


# What a policy keeps is the same on all engines; how gradients and rates are read and written is not.
KEEPING = ("awd", "adadecay", "adadecay_original", "adamc", "llr")


@pytest.mark.parametrize(("engine", "policies"), [("fsdp2", tuple(POLICIES)), ("2", ("uniform", *KEEPING))])
def test_each_policy_resumes_bit_for_bit(tmp_path, engine, policies):
    runs = []
    for policy in policies:
        options = tiny_options(tmp_path, decay__policy=policy, **{**SHORT, **SETTINGS.get(policy, {})})
        whole, broken = str(tmp_path / f"{policy}-whole"), str(tmp_path / f"{policy}-broken")
        runs.append(argv_of(engine, whole, options))
        runs.append(argv_of(engine, broken, [*options, f"--train.stop_after={STOP}"]))
        runs.append(argv_of(engine, broken, options))
    (codes, closing), others = run_ranks(train_each, 2, runs, timeout=600)
    assert (codes, others) == ([0] * len(runs), (codes, []))
    for policy, line in zip(policies, closing[2::3], strict=True):
        assert ("decay.jsonl" in line) == (tmp_path / f"{policy}-broken" / "decay.jsonl").is_file()
    for policy in policies:
        whole, broken = tmp_path / f"{policy}-whole", tmp_path / f"{policy}-broken"
        found = without_times(left_behind(broken))
        assert found == without_times(left_behind(whole)), policy
        assert same_weights(whole, broken), policy
        _check_what_is_logged(policy, found)
    for policy in policies[1:]:
        same = same_weights(tmp_path / "uniform-whole", tmp_path / f"{policy}-whole")
        assert same == (policy == "monitor"), policy


def _check_what_is_logged(policy, found):
    row, refreshes = POLICIES[policy], found["decay"]
    if row.each_update:
        assert all(line["mean_decay"] > 0 for line in found["metrics"])
        assert not refreshes
    elif policy == "uniform":
        assert not refreshes
    else:
        every = [0] if policy in ("none", "static", "cautious") else [0, 3]
        assert [refresh["step"] for refresh in refreshes] == every
    assert [line["step"] for line in found["spectra"]] == ([0, 3] if row.overlaps else [])
    for refresh in refreshes:
        for module in refresh["modules"].values():
            assert ("metrics" in module) == (policy == "monitor")
            assert ("lr_ratio" in module) == (policy == "llr")
            assert (module["alpha"] is None) == (not row.overlaps)


def test_a_policy_that_follows_another_goes_on_with_the_runs_updates(tmp_path):
    """Uniform leaves no state; of those that do see tests/control/test_change_of_policy.py."""
    runs = []
    for name, policies in (("late", ("uniform", "alphadecay")), ("weak", ("none", "cautious"))):
        for policy, more in zip(policies, ([f"--train.stop_after={STOP}"], []), strict=True):
            options = tiny_options(tmp_path, decay__policy=policy, train__steps=STEPS + 1, decay__interval=3)
            runs.append(argv_of("fsdp2", str(tmp_path / name), [*options, *more]))
    assert [codes for codes, _ in run_ranks(train_each, 2, runs, timeout=300)] == [[0] * len(runs)] * 2
    late, weak = (left_behind(tmp_path / name)["decay"] for name in ("late", "weak"))
    assert [refresh["step"] for refresh in late] == [STOP, STEPS]
    decays = [{module["weight_decay"] for module in refresh["modules"].values()} for refresh in weak]
    assert [refresh["step"] for refresh in weak] == [0, STOP]
    assert decays == [{0.0}, {1.0}]
