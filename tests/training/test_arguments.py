"""The command line as users write it, and what its errors say."""

from __future__ import annotations

import configparser
import subprocess
import sys

import pytest

import alphadecay_dist
import train
from alphadecay_dist import cli
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.arguments import normalized
from alphadecay_dist.training.config import defaults, load_config
from alphadecay_dist.training.field_help import described
from tests.training.runs import ROOT


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--train.steps", "10"], ["--train.steps=10"]),
        (["--train.steps=10", "--dry_run"], ["--train.steps=10", "--dry_run"]),
        (["--output-dir", "a-b", "--dry-run"], ["--output_dir", "a-b", "--dry_run"]),
        (["--output-dir=a-b", "--train.micro-batch=4"], ["--output_dir=a-b", "--train.micro_batch=4"]),
        (["--decay.min-ratio", "-1"], ["--decay.min_ratio=-1"]),
        (["--decay.min-ratio", "-.5"], ["--decay.min_ratio=-.5"]),
        # A switch takes a truth alone, and no field takes an option.
        (["--data.pack", "--overwrite"], ["--data.pack", "--overwrite"]),
        (["--data.pack", "false", "--overwrite"], ["--data.pack=false", "--overwrite"]),
        (["--data.pack", "other"], ["--data.pack", "other"]),
        (["--train.steps", "--overwrite"], ["--train.steps", "--overwrite"]),
        (["--train.steps", "-h"], ["--train.steps", "-h"]),
        (["--overwrite", "--train.steps", "3"], ["--overwrite", "--train.steps=3"]),
        (["--train.steps"], ["--train.steps"]),
        (["--data.source", "my--file.txt", "doctor"], ["--data.source=my--file.txt", "doctor"]),
        (["--train.stepz", "3"], ["--train.stepz=3"]),
        (["doctor", "--", "-x"], ["doctor", "--", "-x"]),
        ([], []),
    ],
)
def test_spaces_and_dashes(given, expected):
    assert normalized(given) == expected


SAME = [
    ["--output_dir=x", "--train.micro_batch=4", "--data.pack=true", "--overwrite"],
    ["--output-dir", "x", "--train.micro-batch", "4", "--data.pack", "--overwrite"],
    ["--data.pack", "true", "--train.micro_batch", "4", "--overwrite", "--output_dir", "x"],
    ["--overwrite", "--data.pack", "on", "--train.micro-batch=4", "--output-dir=x"],
]


@pytest.mark.parametrize("argv", SAME)
def test_every_way_to_write_options_gives_the_same_run(argv):
    options = train.parse(argv)
    assert (options.output_dir, options.overwrite) == ("x", True)
    assert load_config("demo", options.overrides) == load_config(
        "demo", ["train.micro_batch=4", "data.pack=true"]
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--lr", "did you mean --optimizer.lr?"),
        ("--lr=3e-4", "did you mean --optimizer.lr?"),
        ("--learning-rate", "did you mean --optimizer.lr?"),
        ("--steps", "did you mean --train.steps?"),
        ("--max_steps", "did you mean --train.steps?"),
        ("--weight_decay", "did you mean --decay.weight_decay?"),
        ("--weight-decy", "did you mean --decay.weight_decay?"),
        ("--batch-size", "did you mean --train.global_batch or --train.micro_batch?"),
        ("--seq-len", "did you mean --train.seq_len?"),
        ("--every", "did you mean --checkpoint.every or --eval.every or --logging.every?"),
        ("--model", "did you mean --model.name?"),
        ("--output", "did you mean --output_dir?"),
        ("--resum", "did you mean --resume?"),
        ("--zzz", "unknown option; see train.py --help"),
        ("3", "belongs to no option; see train.py --help"),
    ],
)
def test_an_unknown_option_names_the_nearest_of_all_sections(option, words):
    with pytest.raises(UserError) as caught:
        train.parse([option])
    assert words in str(caught.value)
    assert repr(option.replace("-", "_").replace("__", "--", 1) if option[0] == "-" else option)[:5] in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "the following arguments are required: COMMAND; see alphadecay --help"),
        (["plan"], "the following arguments are required: --world_size; see alphadecay plan --help"),
        (
            ["plan", "--world-size=2", "--bandwith=3"],
            "'--bandwith=3': unknown option; did you mean --bandwidth?",
        ),
        (["export", "x", "--to=onnx"], "argument --to: invalid choice: 'onnx'"),
        (["doctor", "--lr=1"], "'--lr=1': unknown option; did you mean --optimizer.lr?"),
        (
            ["data", "prepare", "--output=x", "--lr=1"],
            "'--lr=1': unknown option; did you mean --optimizer.lr?",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(capsys, monkeypatch, argv, line):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli.main(argv) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith("alphadecay")
    assert line in found


def test_help_lists_every_field_with_its_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as left:
        train.parse(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    fields = list(described())
    assert [key for key, *_ in fields] == list(defaults())
    for key, _, text in fields:
        assert text, f"{key}: its docstring says nothing"
        assert f"  --{key}=" in shown
    assert "--train.steps=100\n      optimizer updates; schedules span them." in shown
    assert "--decay.min_ratio=0.6667\n" in shown
    assert "--data.validation=null\n" in shown


def test_the_version_has_one_source(capsys):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: alphadecay_dist.__version__"
    for call in (lambda: cli.main(["--version"]), lambda: train.parse(["--version"])):
        with pytest.raises(SystemExit):
            call()
        assert alphadecay_dist.__version__ in capsys.readouterr().out


@pytest.mark.launcher
def test_the_package_is_the_command():
    command = [sys.executable, "-m", "alphadecay_dist", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"alphadecay {alphadecay_dist.__version__}\n"), done.stderr
