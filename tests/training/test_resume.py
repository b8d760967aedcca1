"""A resumed run is the unbroken run."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

import train
from alphadecay_dist.checkpoint import writer
from alphadecay_dist.training.outputs.run_files import EVENTS, read_lines, read_status
from tests.multirank import run_ranks
from tests.training.runs import (
    SIZES,
    argv_of,
    left_behind,
    same_weights,
    tiny_options,
    train_on,
    without_times,
)

pytestmark = pytest.mark.kills

STEPS = 16


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Options of a run, its directory, and what it left behind: made once for each engine and options."""
    runs = {}

    def of(engine, world_size, **changes):
        key = engine, world_size, *sorted(changes.items())
        if key not in runs:
            folder = tmp_path_factory.mktemp("unbroken")
            options = tiny_options(folder, train__steps=STEPS, decay__interval=5, eval__every=7, **changes)
            output = folder / "whole"
            runs[key] = options, output, train_on(world_size, engine, output, options)
        return runs[key]

    return of


@pytest.mark.parametrize(
    ("stage", "world_size", "dtype", "pack"),
    [
        ("1", 2, "bfloat16", True),
        ("2", 1, "float32", False),
        ("3", 2, "float32", True),
        ("3_offload", 2, "bfloat16", False),
        ("fsdp2", 2, "bfloat16", False),
        ("ddp", 3, "float32", False),  # of 2 ranks a sum has one order alone
        ("0", 2, "float32", True),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [
                ("1", 2, "float32", True),
                ("2", 2, "bfloat16", True),
                ("3", 2, "bfloat16", False),
                ("3_offload", 2, "float32", True),
                ("fsdp2", 2, "float32", True),
            ]
        ),
    ],
)
def test_a_run_in_three_parts_is_bit_for_bit_the_unbroken_one(
    tmp_path, unbroken, stage, world_size, dtype, pack
):
    options, output, whole = unbroken(stage, world_size, train__dtype=dtype, data__pack=pack)
    broken = tmp_path / "broken"
    for stop in (5, 8):  # at a refresh, and between two
        train_on(world_size, stage, broken, [*options, f"--train.stop_after={stop}"])
        assert read_status(broken) == {
            "state": "preempted",
            "step": stop,
            "exit_code": 0,
            "reason": f"train.stop_after={stop}",
        }
    resumed = train_on(world_size, stage, broken, options)
    assert without_times(resumed) == without_times(whole)
    assert same_weights(broken, output)
    assert read_status(broken) == {"state": "finished", "step": STEPS, "exit_code": 0, "reason": None}
    events = [(line["event"], line["step"]) for line in read_lines(broken / EVENTS)]
    stops = [("preempted", 5), ("resumed", 5), ("preempted", 8), ("resumed", 8)]
    assert events == [("started", 0), *stops, ("finished", STEPS)]


def test_a_run_broken_off_while_a_refresh_is_pending_is_the_unbroken_one(tmp_path, unbroken):
    options, output, whole = unbroken("3", 2, decay__lag=3, logging__spectra=2)
    assert [line["written_at"] for line in whole["spectra"]] == [3, 13]
    assert [(line["step"], line["written_at"]) for line in whole["decay"]] == [(0, 3), (5, 8), (10, 13)]
    broken = tmp_path / "broken"
    for stop in (7, 8):  # while one is pending, and where it is to be written next
        train_on(2, "3", broken, [*options, f"--train.stop_after={stop}"])
    assert [line["step"] for line in left_behind(broken)["decay"]] == [0]
    resumed = train_on(2, "3", broken, options)
    assert without_times(resumed) == without_times(whole)
    assert same_weights(broken, output)


def test_a_finished_run_says_so_and_stays_as_it_is(tmp_path):
    options = tiny_options(tmp_path, train__steps=3)
    train_on(1, "2", tmp_path / "run", options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    train_on(1, "2", tmp_path / "run", options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_overwrite_begins_anew(tmp_path):
    options = tiny_options(tmp_path, train__steps=3)
    first = train_on(1, "2", tmp_path / "run", options)
    again = train_on(1, "2", tmp_path / "run", [*options, "--resume", "none", "--overwrite"])
    assert without_times(again) == without_times(first)


def killed_while_saving(argv, step):
    """Train until rank 1 dies by SIGKILL in the middle of the save after ``step``."""
    write_shard = writer.write_shard

    def die_here(folder, rank, parts, others):
        if folder.name == f"step-{step:08d}" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(folder, rank, parts, others)

    writer.write_shard = die_here
    train.main(argv)


def test_a_rank_killed_in_mid_save_costs_no_more_than_the_updates_since_the_last_checkpoint(
    tmp_path, unbroken
):
    options, output, whole = unbroken("3", 2, train__dtype="float32", data__pack=True)
    options = [*options, "--checkpoint.every=5"]
    broken = tmp_path / "broken"
    argv = argv_of("3", broken, options)
    with pytest.raises(AssertionError, match="died with exit code -9"):
        run_ranks(killed_while_saving, 2, argv, 10)
    assert not (broken / "checkpoints" / "step-00000010" / "manifest.json").exists()
    assert (broken / "checkpoints" / "latest").read_text() == "step-00000005\n"
    assert [line["step"] for line in left_behind(broken)["metrics"]] == list(range(1, 11))
    assert read_status(broken)["state"] == "failed"
    resumed = train_on(2, "3", broken, options)
    assert without_times(resumed) == without_times(whole)
    assert same_weights(broken, output)


def test_a_checkpoint_with_a_file_cut_short_is_passed_over(tmp_path):
    options = tiny_options(tmp_path, train__steps=4, checkpoint__every=2)
    whole = train_on(1, "2", tmp_path / "run", options)
    newest = tmp_path / "run" / "checkpoints" / "step-00000004"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, 7)
    again = train_on(1, "2", tmp_path / "run", options)
    assert without_times(again) == without_times(whole)


def test_a_run_goes_on_from_the_checkpoint_that_is_named(tmp_path):
    options = tiny_options(tmp_path, train__steps=6, checkpoint__every=2)
    whole = train_on(1, "2", tmp_path / "run", options)
    checkpoints = tmp_path / "run" / "checkpoints"
    back = [*options, "--resume", str(checkpoints / "step-00000002")]
    branch = train_on(1, "2", tmp_path / "run", [*back, "--train.stop_after=3"])
    assert [line["step"] for line in branch["metrics"]] == [1, 2, 3]
    assert (checkpoints / "latest").read_text() == "step-00000003\n"
    assert without_times(train_on(1, "2", tmp_path / "run", options)) == without_times(whole)
    elsewhere = train_on(1, "2", tmp_path / "elsewhere", back)
    assert elsewhere["metrics"][0]["step"] == 3
    assert without_times(elsewhere)["metrics"] == without_times(whole)["metrics"][2:]
    assert run_ranks(train.main, 1, argv_of("2", tmp_path / "elsewhere", back)) == [2]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A directory with a run of 2 of 4 updates, and all that it is made of."""
    folder = tmp_path_factory.mktemp("stopped") / "all"
    folder.mkdir()
    train_on(1, "2", folder / "run", [*tiny_options(folder, train__steps=4), "--train.stop_after=2"])
    return folder


@pytest.mark.parametrize(
    "change",
    [
        ["--train.seed=5"],
        ["--data.pack=false"],
        ["--resume", "/nowhere"],
        ["--resume", "none"],
        ["another model of that name"],
        ["a damaged tokenizer"],
    ],
    ids=lambda change: change[-1],
)
def test_what_cannot_go_on_from_a_checkpoint_is_refused_and_harms_nothing(tmp_path, stopped, change):
    folder = shutil.copytree(stopped, tmp_path / "moved")
    options = tiny_options(folder, train__steps=4)
    if change == ["another model of that name"]:
        (folder / "tiny.json").write_text(json.dumps({**SIZES, "intermediate_size": 128}))
        change = []
    elif change == ["a damaged tokenizer"]:
        (folder / "run" / "tokenizer.model").write_bytes(b"no pieces")
        change = []
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    assert run_ranks(train.main, 1, argv_of("2", folder / "run", [*options, *change])) == [2]
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before
