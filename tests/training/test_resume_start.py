"""How a run starts: after a start that was killed, and with the state of its checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from alphadecay_dist.errors import UserError
from alphadecay_dist.training import resume
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.outputs.run_files import EVAL, RunFiles
from tests.checkpoint.layouts import SHARD, save
from tests.checkpoint.ranks import on_ranks
from tests.checkpoint.test_damaged import flip
from tests.training.test_state import CONFIG, STATE


@pytest.mark.parametrize("removals", range(12))
def test_what_a_killed_start_left_of_a_run_to_be_cleared_is_cleared_by_the_next(
    tmp_path, monkeypatch, removals
):
    """A line in eval.jsonl of before the first update would stay, and come a second time."""
    files = RunFiles(tmp_path)
    for name in ("config.yaml", "tokenizer.model", "inputs.json", "wandb_id"):
        files.text(name, "")
    lines = ("metrics", "decay", "spectra", "condition", "sequences", "events")
    for name in (EVAL, *(f"{line}.jsonl" for line in lines)):
        files.append(name, {"step": 0})
    files.status("running", 0)
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    unlink, left = Path.unlink, [None] * removals

    def killed(path, missing_ok=False):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        resume.clear(tmp_path, ["tokenizer.model"])
    monkeypatch.undo()
    start = resume.decide_start(tmp_path, load_config("demo", []), "auto", False, {})
    assert start.clear
    resume.clear(tmp_path, ["tokenizer.model"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tmp_path):
    """A run that was stopped after update 2, with the checkpoints of updates 1 and 2."""
    files = RunFiles(tmp_path / "run")
    files.status("preempted", 2)
    for step in (1, 2):
        save(files.folder / "checkpoints", step, extra=STATE)
    return files.folder


def folder_of(run, step):
    return run / "checkpoints" / f"step-{step:08d}"


def starts(run, named="auto", config=CONFIG):
    """How the ranks start, which is the same on all."""
    found = on_ranks(2, lambda ranks: resume.choose_start(run, config, named, False, ranks))
    assert found[0] == found[1]
    return found[0]


def test_a_start_carries_the_state_of_its_checkpoint(run):
    start = starts(run)
    (folder_of(run, 2) / "state.json").unlink()  # it has been read
    assert (start.step, start.evaluated) == (2, 1)
    assert start.saved.state.lanes == STATE["lanes"]
    assert dataclasses.asdict(start.saved.state.inputs) == STATE["inputs"]


def test_a_start_passes_over_a_checkpoint_that_one_rank_finds_damaged(run):
    flip(folder_of(run, 2) / SHARD)
    start = starts(run)
    assert start.checkpoint.folder == folder_of(run, 1)
    (reason,) = start.skipped
    assert f"{folder_of(run, 2)}: {SHARD} does not have the content" in reason


def test_a_damaged_checkpoint_that_was_named_is_not_replaced_by_another(run):
    named = folder_of(run, 2)
    assert starts(run, str(named)).checkpoint.folder == named
    flip(named / SHARD)
    with pytest.raises(UserError, match=r"--resume: .*does not have the content.*; give the directory of"):
        starts(run, str(named))


def test_checkpoints_that_were_whole_are_not_removed_unasked(run):
    for step in (1, 2):
        flip(folder_of(run, step) / SHARD)
    with pytest.raises(
        UserError, match=r"no checkpoint is whole any more .*; restore one, or start a new run"
    ):
        starts(run)


def test_a_finished_run_is_finished_whatever_became_of_its_shards(run):
    RunFiles(run).status("finished", 2, 0)
    flip(folder_of(run, 2) / SHARD)
    done = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=2))
    start = starts(run, config=done)
    assert (start.finished["state"], start.saved) == ("finished", None)
