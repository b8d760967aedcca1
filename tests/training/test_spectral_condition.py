"""Telemetry beside training: the same training to the last bit, the same samples after a resume."""

from __future__ import annotations

import csv
import json

import pytest

from alphadecay_dist import cli
from alphadecay_dist.condition.numbers import medians_by_type
from alphadecay_dist.condition.sample import CONDITION
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.outputs.run_files import RunFiles, read_lines
from tests.training.runs import TIMES, launch, same_weights, tiny_options, train_on, without_times

SAMPLED = {"telemetry__spectral_condition": 2, "telemetry__heads": 2}
TYPES = ["q", "k", "v", "o", "gate", "up", "down", "head", "embed"]


def samples(folder):
    """The lines of condition.jsonl, less what a clock gave."""
    lines = read_lines(folder / CONDITION)
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.mark.ranks
@pytest.mark.launcher
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("fsdp2", {"train__activation_checkpointing": "true"}),
        ("2", {}),
        pytest.param("ddp", {"train__dtype": "bfloat16"}, marks=pytest.mark.long),
        pytest.param("0", {}, marks=pytest.mark.long),
        pytest.param("3", {"train__dtype": "bfloat16"}, marks=pytest.mark.long),
    ],
)
def test_training_is_to_the_last_bit_what_it_is_without(tmp_path, engine, options):
    """Several micro-batches an update, one of which is recorded; an evaluation comes before the first."""
    size = {"train__steps": 5, "train__micro_batch": 2, "decay__interval": 3, **options}
    without = train_on(2, engine, tmp_path / "without", tiny_options(tmp_path, **size))
    beside = train_on(2, engine, tmp_path / "with", tiny_options(tmp_path, **size, **SAMPLED))
    assert without_times(beside) == without_times(without)
    assert same_weights(tmp_path / "with", tmp_path / "without")
    assert not (tmp_path / "without" / CONDITION).exists()
    lines = samples(tmp_path / "with")
    assert [line["step"] for line in lines] == [0, 2, 4]
    for line in lines:
        assert list(dict.fromkeys(own["type"] for own in line["matrices"].values())) == TYPES
        assert all(own["status"] == "ok" and own["ratio"] > 0 for own in line["matrices"].values())
        q = line["matrices"]["model.layers.1.self_attn.q_proj"]
        o = line["matrices"]["model.layers.1.self_attn.o_proj"]
        assert len(q["heads"]) == len(o["heads"]) == 2
        assert o["st"] == o["st_norm"] == q["st_in"] != o["st_in"]
        assert line["n_tokens"] <= 2 * 2 * 32  # two sequences of each rank, less their padding
        assert line["inv_p_max"] > 1
        applied = {
            name: module["weight_decay"]
            for refresh in beside["decay"]
            if refresh["step"] <= line["step"]
            for name, module in refresh["modules"].items()
        }
        assert {name: line["matrices"][name]["decay"] for name in applied} == applied


@pytest.mark.ranks
@pytest.mark.launcher
def test_a_resume_samples_at_the_same_updates(tmp_path):
    size = {"train__steps": 7, "checkpoint__every": 3, "logging__to": "csv", **SAMPLED}
    train_on(1, "ddp", tmp_path / "whole", tiny_options(tmp_path, **size))
    halves = tmp_path / "halves"
    train_on(1, "ddp", halves, tiny_options(tmp_path, **size, train__stop_after=3))
    RunFiles(halves).append(CONDITION, {"step": 4, "matrices": {}})  # of a run that was killed behind it
    train_on(1, "ddp", halves, tiny_options(tmp_path, **size))
    assert samples(halves) == samples(tmp_path / "whole")
    assert [line["step"] for line in samples(halves)] == [0, 2, 4, 6]
    for folder in (halves, tmp_path / "whole"):
        with (folder / "condition.csv").open(newline="") as file:
            rows = [
                {key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)
            ]
        assert rows == [{"step": line["step"], **medians_by_type(line)} for line in samples(folder)]


def test_what_cannot_be_is_said_before_ranks_meet():
    with pytest.raises(UserError, match=r"telemetry.which: found '\(', which is no regular expression"):
        load_config("demo", ["telemetry.which=("])
    with pytest.raises(UserError, match=r"found 5 with train\.compile, expected 0"):
        load_config("demo", ["telemetry.spectral_condition=5", "train.compile=true"])
    config = load_config("demo", ["telemetry.which=q_proj|*", "telemetry.memory_budget=2MiB"][1:])
    assert config.telemetry.memory_budget == 2 * 2**20


@pytest.mark.launcher
def test_a_run_ends_with_its_summary_and_the_command_has_more(tmp_path, capsys):
    options = tiny_options(tmp_path, train__steps=3, telemetry__which=r"layers\.0.*(q|up)_proj", **SAMPLED)
    code, printed = launch("python", "train.py", f"--output_dir={tmp_path / 'run'}", *options)
    assert code == 0, printed
    assert "spectral condition at update 2: nr / st " in printed
    table = printed[printed.index("spectral condition nr / st: 2 samples, updates 0 to 2") :]
    assert "| q | 1 |" in table
    assert "alphadecay condition" in table
    assert cli.main(["condition", str(tmp_path / "run")]) == 0
    more = capsys.readouterr().out
    assert more.startswith(table.rpartition("more, and")[0].strip())
    assert "A suggestion, no more" in more


@pytest.mark.parametrize("line", [{"step": 0}, {"step": 0, "n_tokens": 3, "matrices": {"a": {"type": 3}}}])
def test_a_line_that_no_run_writes_is_refused(tmp_path, capsys, line):
    assert cli.main(["condition", str(tmp_path)]) == 2
    assert "holds no sample; train with" in capsys.readouterr().err
    (tmp_path / CONDITION).write_text(json.dumps(line) + "\n")
    assert cli.main(["condition", str(tmp_path)]) == 2
    assert "is not what a run writes" in capsys.readouterr().err
