"""The files of a run: JSON lines and status.json."""

from __future__ import annotations

import json
import math
import os

import pytest

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.outputs.run_files import (
    DECAY,
    EVAL,
    EVENTS,
    METRICS,
    SPECTRA,
    RunFiles,
    read_lines,
    read_status,
)


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path / "runs" / "one")


def test_what_is_not_finite_becomes_null_at_any_depth(files):
    record = {
        "step": 1,
        "loss": math.nan,
        "deep": {"list": [1.5, math.inf], "tuple": (-math.inf, None, True)},
    }
    files.append(METRICS, record)
    text = (files.folder / METRICS).read_text()
    assert text == '{"step": 1, "loss": null, "deep": {"list": [1.5, null], "tuple": [null, null, true]}}\n'


def test_lines_are_added_and_read_back(files):
    for step in (1, 2):
        files.append(METRICS, {"step": step, "loss": 0.1 + 0.2})
    assert read_lines(files.folder / METRICS) == [
        {"step": 1, "loss": 0.1 + 0.2},
        {"step": 2, "loss": 0.1 + 0.2},
    ]


def test_a_resume_drops_what_came_after_its_checkpoint(files):
    for step in range(31):
        files.append(METRICS, {"step": step})
        files.append(EVAL, {"step": step})
        files.append(DECAY, {"step": step})
    files.keep_until(20)
    kept = {
        name: [line["step"] for line in read_lines(files.folder / name)] for name in (METRICS, EVAL, DECAY)
    }
    assert kept == {METRICS: list(range(21)), EVAL: list(range(21)), DECAY: list(range(20))}


def test_a_resume_drops_spectra_as_refreshes_and_no_event(files):
    for step in (0, 10, 20):
        files.append(SPECTRA, {"step": step, "written_at": step + 3})
        files.event("resumed", step)
    with (files.folder / EVENTS).open("a") as file:
        file.write('{"step": 20, "eve')  # a killed run's last words
    files.keep_until(13)
    files.event("resumed", 13)
    assert [line["step"] for line in read_lines(files.folder / SPECTRA)] == [0]
    assert [line["step"] for line in read_lines(files.folder / EVENTS)] == [0, 10, 20, 13]


def test_a_lagged_refresh_is_kept_by_when_it_was_written(files):
    for step in range(0, 30, 10):
        files.append(DECAY, {"step": step, "written_at": step + 6})
    files.keep_until(16)
    assert [line["step"] for line in read_lines(files.folder / DECAY)] == [0]
    files.append(DECAY, {"step": 10, "written_at": 16})
    files.keep_until(17)
    assert [line["step"] for line in read_lines(files.folder / DECAY)] == [0, 10]


def test_beginning_again_drops_everything_and_makes_no_file(files):
    files.append(METRICS, {"step": 1})
    files.keep_until(0)
    assert (files.folder / METRICS).read_text() == ""
    assert sorted(path.name for path in files.folder.iterdir()) == [METRICS]


def test_a_last_line_that_was_cut_short_is_left_out_and_written_over(files):
    files.append(METRICS, {"step": 1, "loss": 2.0})
    whole = (files.folder / METRICS).read_text()
    for cut in range(1, len(whole)):
        (files.folder / METRICS).write_text(whole + whole[:-1][:cut])
        assert read_lines(files.folder / METRICS) == [{"step": 1, "loss": 2.0}]
    files.keep_until(5)
    files.append(METRICS, {"step": 2})
    assert [line["step"] for line in read_lines(files.folder / METRICS)] == [1, 2]


@pytest.mark.parametrize(
    "line", ["{", "[]", '"x"', "{}", '{"step": "3"}', '{"step": 3, "written_at": {}}', "[" * 100_000, "\0"]
)
def test_a_line_that_is_not_a_record_is_named(files, line):
    (files.folder / METRICS).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for read in (lambda: read_lines(files.folder / METRICS), lambda: files.keep_until(5)):
        with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is not a record: .*; remove it"):
            read()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"state": 3, "step": 3}', '{"state": "x"}', "[" * 100_000]
)
def test_a_status_that_cannot_be_read_is_none(files, text):
    (files.folder / "status.json").write_text(text)
    assert read_status(files.folder) is None


def test_status_is_replaced_whole_and_leaves_nothing_beside_it(files):
    assert read_status(files.folder) is None
    files.status("running", 0)
    assert read_status(files.folder) == {"state": "running", "step": 0, "exit_code": None, "reason": None}
    before = os.open(files.folder / "status.json", os.O_RDONLY)
    files.status("failed", 7, 1, "RuntimeError: out of memory")
    after = {"state": "failed", "step": 7, "exit_code": 1, "reason": "RuntimeError: out of memory"}
    assert read_status(files.folder) == after
    assert json.loads(os.read(before, 1000))["state"] == "running"  # a reader keeps the old one whole
    os.close(before)
    assert [path.name for path in files.folder.iterdir()] == ["status.json"]
