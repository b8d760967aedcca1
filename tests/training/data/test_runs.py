"""Whole runs: the sequences that updates consumed, prepared or not, over resumes and failures of the data."""

from __future__ import annotations

import itertools
import json
import os

import pytest

import train
from alphadecay_dist import cli
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.corpus import Corpus
from alphadecay_dist.training.data.prepared import Shards
from alphadecay_dist.training.outputs.run_files import read_lines, read_status
from tests.multirank import run_ranks
from tests.training.corpora import numbered, write_lines
from tests.training.runs import ENGINES, final_weights, same_weights, tiny_options, train_on, without_times

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


def prepared(folder, **overrides):
    """Options of a tiny run, and the same from its prepared corpus."""
    options = tiny_options(folder, logging__sequences=True, **overrides)
    assert cli.main(["data", "prepare", "--output", str(folder / "prepared"), *options]) == 0
    return options, [*options, f"--data.prepared={folder / 'prepared'}"]


def sequences(output):
    return [(line["step"], line["sequences"]) for line in read_lines(output / "sequences.jsonl")]


def test_a_run_from_prepared_data_in_three_parts_is_the_unbroken_one(tmp_path):
    text, options = prepared(tmp_path, data__pack=True, data__lanes=3, train__steps=12)
    whole = train_on(2, "fsdp2", tmp_path / "whole", options)
    for stop in (3, 8):
        train_on(2, "fsdp2", tmp_path / "broken", [*options, f"--train.stop_after={stop}"])
    resumed = train_on(2, "fsdp2", tmp_path / "broken", options)
    assert without_times(resumed) == without_times(whole)
    assert same_weights(tmp_path / "broken", tmp_path / "whole")
    assert sequences(tmp_path / "broken") == sequences(tmp_path / "whole")
    assert [step for step, _ in sequences(tmp_path / "whole")] == list(range(1, 13))
    consumed = list(itertools.chain(*(ids for _, ids in sequences(tmp_path / "whole"))))
    assert len(consumed) == len(set(consumed)) == 12 * 12  # within an epoch: none is seen twice
    other = train_on(3, "ddp", tmp_path / "other", [*options, "--train.steps=5"])
    assert sequences(tmp_path / "other") == sequences(tmp_path / "whole")[:5]
    from_text = train_on(1, "ddp", tmp_path / "text", [*text, "--train.steps=1"])
    for key in ("loss", "tokens"):  # before the first update: the same weights on the same validation set
        assert other["eval"][0][key] == pytest.approx(from_text["eval"][0][key], rel=1e-6)


def test_other_prepared_data_are_not_gone_on_with(tmp_path):
    _, options = prepared(tmp_path, train__steps=4)
    train_on(1, "ddp", tmp_path / "run", [*options, "--train.stop_after=2"])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    other = tmp_path / "other" / "prepared"
    assert cli.main(["data", "prepare", "--output", str(other), *options[:-1], "--data.shuffle=7"]) == 0
    argv = [*ENGINES["ddp"], "--output_dir", str(tmp_path / "run"), *options]
    assert run_ranks(train.main, 1, [*argv, f"--data.prepared={other}"]) == [2]
    assert run_ranks(train.main, 1, [*argv, "--data.prepared=null"]) == [2]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def fail_on_one_rank(argv, where, reads):
    """Train until rank 1's data fail."""
    cls, name = {"text": (Corpus, "rows"), "prepared": (Shards, "joined")}[where]
    original, left = getattr(cls, name), itertools.count(reads, -1)

    def rows(self, *args):
        for item in original(self, *args):
            if next(left) <= 0:
                raise UserError("data: c4: cannot be read: connection reset")
            yield item

    def joined(self, *args):
        if next(left) <= 0:
            raise UserError("data: a disk is gone")
        return original(self, *args)

    if os.environ["RANK"] == "1":
        setattr(cls, name, rows if where == "text" else joined)
    return train.main(argv)


@pytest.mark.parametrize(("where", "reads"), [("text", 80), ("prepared", 40)])
def test_data_that_fail_on_one_rank_leave_a_checkpoint_from_which_the_run_goes_on(tmp_path, where, reads):
    text, shards = prepared(tmp_path, data__pack=True, data__shuffle=1, data__lanes=12, train__steps=20)
    options = text if where == "text" else shards
    broken = tmp_path / "broken"
    argv = [*ENGINES["fsdp2"], "--output_dir", str(broken), *options]
    assert run_ranks(fail_on_one_rank, 2, argv, where, reads) == [1, 1]
    status = read_status(broken)
    step = status["step"]
    assert 0 < step < 19, status
    assert status["reason"].startswith(f"update {step + 1}: data: ")
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert (broken / "checkpoints" / "latest").read_text() == f"step-{step:08d}\n"
    resumed = train_on(2, "fsdp2", broken, options)
    whole = train_on(2, "fsdp2", tmp_path / "whole", options)
    assert without_times(resumed) == without_times(whole)
    assert same_weights(broken, tmp_path / "whole")
    assert sequences(broken) == sequences(tmp_path / "whole")


def test_a_bad_row_deep_in_a_corpus_is_named_and_leaves_a_checkpoint(tmp_path):
    good = [{"text": text, "meta": None} for text in numbered(100)]
    path = write_lines(tmp_path / "a.jsonl", [*good, {"text": "7", "meta": {"id": 1}}, {"text": 8}, *good])
    options = tiny_options(tmp_path, data__shuffle=1, data__pack=False, train__steps=20)
    validation = write_lines(tmp_path / "validation.jsonl", good)
    options += [f"--data.source={path}", f"--data.validation={validation}"]
    argv = [*ENGINES["ddp"], "--output_dir", str(tmp_path / "run"), *options]
    assert run_ranks(train.main, 1, argv) == [1]
    status = read_status(tmp_path / "run")
    words = f"update 9: data: {path}: row 101 (counted from 0) has a number in 'text', expected text"
    assert status["reason"].startswith(words), status
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000008\n"


def test_sequences_are_not_written_unless_asked_for(tmp_path):
    train_on(1, "ddp", tmp_path / "run", tiny_options(tmp_path, train__steps=1))
    assert not (tmp_path / "run" / "sequences.jsonl").exists()
    assert final_weights(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
