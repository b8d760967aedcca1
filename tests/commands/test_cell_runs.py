"""``alphadecay table --run`` as a program: killed, stopped, started again; and its numbers at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands.published import Choice, published_table
from alphadecay_dist.training.outputs.run_files import RunFiles, read_status
from tests.python_path import python_path
from tests.training.runs import ROOT, distance, final_weights, launch, left_behind, tiny_options, train_on

UNIFORM, ALPHADECAY = (f"method={name},weight_decay=0.1,seed=0" for name in ("uniform", "alphadecay"))


def fields(folder, **changed):
    """Fields of the recipe that make a cell tiny."""
    given = {"train__steps": 30, "data__source": "demo", "data__lanes": 1, "eval__tokens": 500, **changed}
    options = tiny_options(folder, data__pack="true", **given)
    axes = ("--decay.weight_decay=", "--train.seed=")
    return [option.removeprefix("--") for option in options if not option.startswith(axes)]


def command(folder, output, **changed):
    """Two cells of the AdamW table with a tiny model."""
    chosen = ["--preset=adamw", "--size=60m", "--methods=uniform,alphadecay", "--decays=0.1"]
    own = [f"--{field}" for field in fields(folder, **changed)]
    return ["table", *chosen, f"--output={folder / output}", *own]


def begin(argv):
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "alphadecay_dist", *argv],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def updates(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def state(folder):
    status = read_status(folder)
    return status and status["state"]


@pytest.mark.launcher
@pytest.mark.kills
def test_a_table_that_was_stopped_and_killed_ends_as_the_unbroken_one(tmp_path, capsys):
    argv = [*command(tmp_path, "runs"), "--run"]
    first, second = (tmp_path / "runs" / name for name in (UNIFORM, ALPHADECAY))
    stopped = begin([*argv, "--ranks=1"])
    wait_for(lambda: updates(first) >= 3)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate()[0]
    assert stopped.returncode == 75, said
    assert "stopped early: SIGTERM; the same command goes on" in said
    assert (state(first), state(second)) == ("preempted", None)
    assert (
        f"| uniform | 0.1 |  | 31.95 |  | 0 of 1 | seed 0: preempted at update {updates(first)} of 30" in said
    )

    killed = begin([*argv, "--ranks=1"])
    wait_for(lambda: updates(second) >= 3)
    killed.kill()  # its cell hears of it, and saves
    killed.communicate()
    wait_for(lambda: state(second) == "preempted")
    assert state(first) == "finished"
    assert 3 <= updates(second) < 30

    code, said = launch(sys.executable, "-m", "alphadecay_dist", *argv, "--ranks=2")
    assert code == 0, said
    assert "cell 1 (" not in said  # it is finished
    assert "resumed from" in said
    assert cli.main([*command(tmp_path, "runs"), "--format=json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["place"]["method"] for row in rows] == ["uniform", "alphadecay"]
    for row, cell in zip(rows, (first, second), strict=True):
        whole = train_on(1, "fsdp2", tmp_path / "whole" / cell.name, unbroken(tmp_path, cell.name))
        found = left_behind(cell)
        assert [line["step"] for line in found["metrics"]] == list(range(1, 31))
        losses = [line["loss"] for line in whole["metrics"]]
        assert [line["loss"] for line in found["metrics"]] == pytest.approx(losses, abs=1e-5)
        assert distance(final_weights(cell), final_weights(tmp_path / "whole" / cell.name)) < 2e-5
        assert row["missing"] == []
        for name in ("perplexity", "perplexity_as_published"):
            assert row["numbers"][name]["mean"] == pytest.approx(whole["eval"][-1][name], rel=1e-5)
    # A method that was ignored would be seen.
    assert [[line["step"] for line in left_behind(cell)["decay"]] for cell in (first, second)] == [
        [],
        [0, 10, 20],
    ]
    assert distance(final_weights(first), final_weights(second)) > 1e-3


def unbroken(folder, name):
    """The trainer's options of a cell, less its output directory."""
    cells = published_table(Choice("adamw", "60m"), overrides=fields(folder)).cells.values()
    (options,) = (cell.arguments() for cell in cells if cell.name == name)
    return [*options[:2], *options[4:]]


@pytest.mark.long
@pytest.mark.launcher
def test_cells_run_on_ranks_and_one_that_fails_does_not_stop_the_others(tmp_path):
    argv = command(tmp_path, "runs", train__steps=3)
    bad = tmp_path / "runs" / UNIFORM
    RunFiles(bad).text("config.yaml", "a run of another kind")
    (bad / "checkpoints").mkdir()
    (bad / "metrics.jsonl").write_text("{}\n")
    code, said = launch(sys.executable, "-m", "alphadecay_dist", *argv, "--run", "--ranks=2")
    assert code == 1, said
    assert f"cell 1 failed: {UNIFORM}: exit code 1" in said
    assert state(tmp_path / "runs" / ALPHADECAY) == "finished"
    refresh = left_behind(tmp_path / "runs" / ALPHADECAY)["decay"][0]
    assert len(refresh["bytes_received"]) == 2  # two ranks


def test_cells_with_wrong_recipes_are_said_and_nothing_is_started(tmp_path, capsys):
    argv = command(tmp_path, "runs", data__lanes=5)
    assert cli.main([*argv, "--run", "--ranks=1"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("failed: method=") == 2
    assert "data.lanes: found 5, expected a divisor" in printed
    assert not (tmp_path / "runs").exists()
