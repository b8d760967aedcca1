"""TensorBoard's event files and the tables: each record once, after crashes, resumes and ways back too."""

from __future__ import annotations

import csv
import json
import os
import signal

import numpy as np
import pandas
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alphadecay_dist.control.module_types import means_by_type
from alphadecay_dist.control.refresh import DECAY, ModuleRefresh, Refresh
from alphadecay_dist.errors import UserError
from alphadecay_dist.training import preflight, resume
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.outputs import trackers as trackers_module
from alphadecay_dist.training.outputs.run_files import EVAL, METRICS, RunFiles, read_lines
from alphadecay_dist.training.outputs.run_log import RunLog
from alphadecay_dist.training.outputs.trackers import Trackers, start_trackers
from alphadecay_dist.training.process.preemption import StopRequests
from alphadecay_dist.training.recipe import LoggingConfig
from tests.training.runs import left_behind, same_weights, tiny_options, train_on, without_times

BOTH = LoggingConfig(to=("tensorboard", "csv"), wandb="off")
TAGS = {"metrics": "", "eval": "eval/", "decay": ""}


def a_refresh(step, lag=0):
    modules = {
        f"layers.{n}.{kind}_proj": ModuleRefresh(2 + n + step if step else None, 0.1 * n, 0, "assigned")
        for n in range(2)
        for kind in ("q", "up")
    }
    return Refresh(step, step + lag, 0.5, (0,), modules)


def train(log, first, last, lag=0):
    """Write what a run does from one update to another; a refresh every four updates, eval every three."""
    for step in range(first, last + 1):
        log.line(METRICS, {"step": step, "loss": 1 / step, "grad_norm": float("nan") if step == 2 else step})
        if (step - 1 - lag) % 4 == 0 and step > lag:
            log.refresh(a_refresh(step - 1 - lag, lag))
        if step % 3 == 0:
            log.line(EVAL, {"step": step, "loss": 2.0 + step, "tokens": 7})


def started(folder, step=0, logging=BOTH):
    files = RunFiles(folder)
    files.keep_until(step)
    return RunLog(files, start_trackers(logging, folder, {}, step), StopRequests())


def points(folder):
    """What TensorBoard shows: steps and values by tag."""
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(folder, every=1):
    """The same from the run's own files, with fp32 values; NaN was null there."""
    wanted = {}
    for kind, name in (("metrics", METRICS), ("eval", EVAL), ("decay", DECAY)):
        for line in read_lines(folder / name):
            if kind == "metrics" and line["step"] % every:
                continue
            values = line if kind != "decay" else _means(line)
            for key, value in values.items():
                if key != "step" and value is not None:
                    wanted.setdefault(TAGS[kind] + key, []).append((line["step"], float(np.float32(value))))
    return wanted


def _means(line):
    modules = {
        name: ModuleRefresh(m["alpha"], m["weight_decay"], 0, m["status"])
        for name, m in line["modules"].items()
    }
    return means_by_type(Refresh(line["step"], 0, 0.0, (), modules))


def without_nan(found):
    return {tag: kept for tag, own in found.items() if (kept := [p for p in own if p[1] == p[1]])}


def check(folder, every=1):
    """Both hold what the run's own files hold, once."""
    assert without_nan(points(folder)) == expected(folder, every)
    for kind, name in (("metrics", METRICS), ("eval", EVAL)):
        table = pandas.read_csv(folder / f"{kind}.csv")
        lines = [line for line in read_lines(folder / name) if kind == "eval" or line["step"] % every == 0]
        assert table.step.tolist() == [line["step"] for line in lines]
        for key in lines[0]:
            assert table[key].tolist() == pytest.approx(
                [np.nan if line[key] is None else line[key] for line in lines], rel=0, abs=0, nan_ok=True
            )
    with (folder / "decay.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = read_lines(folder / DECAY)
    assert [int(row["step"]) for row in rows] == [line["step"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        means = _means(line)
        assert {key: float(value) for key, value in row.items() if key != "step" and value} == means
    return rows


@pytest.mark.parametrize("lag", [0, 2])
def test_each_record_is_there_once_over_stops_and_ways_back(tmp_path, lag):
    log = started(tmp_path)
    train(log, 1, 7, lag)
    check(tmp_path)  # without an end: as a run that is killed leaves it
    log = started(tmp_path, 4)
    assert max(step for step, _ in points(tmp_path)["loss"]) == 4
    train(log, 5, 9, lag)
    log.go_back(5)
    train(log, 6, 13, lag)
    log.close(0)
    rows = check(tmp_path)
    # Nothing of the first refresh had an alpha: its columns came later.
    assert list(rows[0]) == ["step", "weight_decay/q", "weight_decay/up", "alpha/q", "alpha/up"]
    started(tmp_path, 0).close(0)
    assert not any(points(tmp_path).values())
    assert (tmp_path / "metrics.csv").read_text() == ""


def test_a_run_that_is_killed_has_all_of_its_records(tmp_path):
    child = os.fork()
    if not child:
        train(started(tmp_path), 1, 60)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    check(tmp_path)


def test_a_table_that_was_cut_short_is_whole_after_a_resume(tmp_path):
    train(started(tmp_path), 1, 6)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-4])
    train(started(tmp_path, 6), 7, 8)
    check(tmp_path)


def test_a_tracker_that_is_asked_for_later_begins_at_the_beginning(tmp_path):
    train(started(tmp_path, logging=LoggingConfig(to=())), 1, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [DECAY, EVAL, METRICS]
    log = started(tmp_path, 5, LoggingConfig(to=("csv", "tensorboard"), every=2))
    train_every(log, 6, 10, every=2)
    check(tmp_path, every=2)


def train_every(log, first, last, every):
    for step in range(first, last + 1):
        log.line(METRICS, {"step": step, "loss": 1.0, "grad_norm": 2.0}, tracked=step % every == 0)


def test_an_overwritten_run_leaves_no_points(tmp_path):
    train(started(tmp_path), 1, 3)
    (tmp_path / "tensorboard" / "notes.txt").write_text("of the user")
    resume.clear(tmp_path, [])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


class Broken:
    """Fails at its second record."""

    def __init__(self):
        self.got = 0

    def log(self, kind, step, record):
        self.got += 1
        if self.got == 2:
            raise OSError(28, "No space left\non device")

    def go_back(self, step): ...

    def close(self, exit_code):
        raise RuntimeError("never ended")


def test_one_that_fails_is_a_warning_and_the_others_go_on(tmp_path):
    def fails():
        raise ValueError("no such thing")

    first, other = Broken(), Broken()
    other.got = 10
    with pytest.warns(UserWarning, match="third does not start: no such thing; the run goes on without it"):
        trackers = Trackers({"first": lambda: first, "other": lambda: other, "third": fails})
    trackers.log("metrics", 1, {})
    with pytest.warns(UserWarning, match=r"first failed at update 2: .*No space left on device; the run"):
        trackers.log("metrics", 2, {})
    trackers.log("metrics", 3, {})
    assert (first.got, other.got) == (2, 13)
    with pytest.warns(UserWarning, match="other did not end well: never ended"):
        trackers.close(0)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("wandb,tensorboard", ("wandb", "tensorboard")),
        ("[csv, wandb]", ("csv", "wandb")),
        ("csv, csv", ("csv",)),
        ("none", ()),
        ("[]", ()),
        ("null", ()),
    ],
)
def test_how_they_are_named(given, found):
    assert load_config("demo", [f"logging.to={given}"]).logging.to == found
    assert load_config("demo").logging.to == ("wandb",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "tensorbord",
            "logging.to: unknown 'tensorbord'; did you mean 'tensorboard'? known: csv, te",
        ),
        (
            "[csv, 3]",
            "logging.to: found ['csv', 3], expected words: [wandb, tensorboard], wandb,tensorboard or none",
        ),
        ("off", "logging.to: found False, expected words"),
    ],
)
def test_what_is_none_is_named(given, words):
    with pytest.raises(UserError) as caught:
        load_config("demo", [f"logging.to={given}"])
    assert words in str(caught.value)


def test_without_its_package_tensorboard_is_refused_before_ranks_meet(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    options = Options("demo", ("logging.to=tensorboard",), None, None, str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"pip install 'alphadecay-dist\[tensorboard\]'"):
        preflight.resolve(options)


@pytest.mark.ranks
@pytest.mark.launcher
def test_a_run_with_all_three_stopped_and_resumed(tmp_path):
    options = tiny_options(tmp_path, train__steps=6, decay__interval=2, eval__every=3)
    options += ["--logging.to=wandb,tensorboard,csv", "--logging.wandb=offline"]
    for stop in ("--train.stop_after=3", "--train.stop_after=6"):
        train_on(1, "ddp", tmp_path / "run", [*options, stop])
    check(tmp_path / "run")
    assert len(read_lines(tmp_path / "run" / METRICS)) == 6
    assert [*(tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    plain = tiny_options(tmp_path, train__steps=6, decay__interval=2, eval__every=3)
    train_on(1, "ddp", tmp_path / "plain", [*plain, "--logging.to=none"])
    assert without_times(left_behind(tmp_path / "plain")) == without_times(left_behind(tmp_path / "run"))
    assert same_weights(tmp_path / "plain", tmp_path / "run")
    assert not {"metrics.csv", "tensorboard", "wandb"} & {
        path.name for path in (tmp_path / "plain").iterdir()
    }
