"""Killed runs end as unbroken ones do, and the harness that says so would see where they do not."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

import train
from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.writers import GroupWriter
from alphadecay_dist.training.data.batches import TrainingData
from tests.resilience.draws import Setup, kind_of
from tests.resilience.faults import Fault
from tests.resilience.kills import Campaign, Kill, Result, begin_of
from tests.resilience.launching import Moment, holders
from tests.resilience.summary import HEADER, append_row, failed, summary
from tests.training.runs import ROOT

SMALL = Setup("ddp", 2, "float32", lag=0, every=4, keep=1)
# 16 updates are saved, and the next refresh comes at 18; the first update of a start is not counted.
IN_UPDATE_18 = Fault("after the gradients", 0, everyone=True, occurrence=17)


@pytest.mark.kills
def test_ten_drawn_kills_over_the_engines(tmp_path):
    results = list(Campaign(1, tmp_path).count(10))
    told = summary(results)
    print(told)
    kills = [kill for result in results for kill in result.kills]
    assert (len(kills), failed(results)) == (10, []), told
    assert len({result.setup.engine for result in results}) >= 3
    assert len({kind_of(kill.fault) for kill in kills}) >= 4


@pytest.mark.kills
@pytest.mark.parametrize("engine", ["2", "fsdp2"])
def test_a_rank_that_dies_while_the_manifest_is_written_costs_nothing_that_is_saved(tmp_path, engine):
    """The save fails on rank 0, which hears of it when the checkpoint is whole and named."""
    setup = Setup(engine, 2, "float32", lag=0, every=4, keep=1)
    fault = Fault("when all shards are written", rank=1, everyone=False, occurrence=2)
    result = Campaign(1, tmp_path).run(0, setup, [fault], random.Random(1))
    assert (result.problems, [kill.redone for kill in result.kills]) == ([], [0])


@pytest.mark.kills
def test_a_fault_that_is_not_reached_is_no_kill(tmp_path):
    fault = Fault("in a round of the exchange", 0, everyone=False, occurrence=1)  # under DDP nothing moves
    result = Campaign(1, tmp_path).run(0, SMALL, [fault, IN_UPDATE_18], random.Random(1))
    assert (result.kills, result.missed, result.problems) == ([], [str(fault)], [])


def position_lost(argv):
    """The trainer, beginning its data anew at a resume."""
    TrainingData.load = lambda self, states: None
    return train.main(argv)


def decays_lost(argv):
    """The trainer, its groups with the base decay until the first refresh after a resume."""
    load, write = AlphaDecay.load_state_dict, GroupWriter.write

    def load_alone(self, state):
        GroupWriter.write = lambda self, numbers, found: None
        load(self, state)
        GroupWriter.write = write

    AlphaDecay.load_state_dict = load_alone
    return train.main(argv)


def refusing(argv):
    """A trainer that does not go on."""
    raise RuntimeError("no, thanks")


@pytest.mark.kills
@pytest.mark.parametrize(
    ("main", "seen"),
    [
        (position_lost, ["metrics: ", 'sequences: {"step": 17,']),
        (decays_lost, ['metrics: {"step": 18,', 'decay: {"step": 18,', "last checkpoint: "]),
        (refusing, ["not killed, but: ", "no, thanks"]),
    ],
    ids=["position", "decays", "start"],
)
def test_the_harness_sees_a_resume_that_is_not_exact(tmp_path, main, seen):
    result = Campaign(1, tmp_path, main).run(0, SMALL, [IN_UPDATE_18], random.Random(1))
    assert [kill.redone for kill in result.kills] == [1]
    assert all(any(text in problem for problem in result.problems) for text in seen), result.problems
    assert result.folder.is_dir()


def test_a_name_of_what_is_not_whole_is_seen(tmp_path):
    assert begin_of(tmp_path) == 0
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert begin_of(tmp_path) == 0  # a save that was killed
    (tmp_path / "checkpoints" / "latest").write_text("step-00000004\n")
    with pytest.raises(AssertionError, match="latest names step-00000004, whole is None"):
        begin_of(tmp_path)


def test_a_process_that_is_left_is_seen(tmp_path):
    with (tmp_path / "output").open("w") as output:
        left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=output)
    assert holders(tmp_path) == {left.pid}
    left.communicate(b"\n")
    assert holders(tmp_path) == set()


def test_a_count_is_summed_up_in_words_and_as_a_row(tmp_path):
    kills = [Kill(IN_UPDATE_18, "by themselves", 2), Kill(Moment(0, False, 1.5), "by themselves", 3)]
    fine = Result(0, SMALL, Path("a"), kills, resumes=2)
    results = [fine, Result(1, SMALL, Path("b"), kills[:1], resumes=1, problems=["metrics: 7"])]
    told = summary(results)
    assert "3 kills in 2 runs, by what they were in the midst of: step 2, time 1" in told
    assert "by engine: ddp 3" in told
    assert "run 1, kept in b: metrics: 7" in told
    document = (ROOT / "docs" / "reliability.md").read_text()
    (tmp_path / "document.md").write_text(document)
    append_row(tmp_path / "document.md", "2026-11-21", "abc", "kill", results)
    row = "| 2026-11-21 | abc | `kill` | 3 | 3 | 2.3, 3 | 1 | 0 |"
    lines = (tmp_path / "document.md").read_text().splitlines()
    assert [line for line in lines if line != row] == document.splitlines()
    assert lines[lines.index(row) - 1].startswith("|")
    assert HEADER in lines
