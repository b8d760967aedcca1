"""Help and mistakes come back at once: nothing slow is loaded before a command runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from alphadecay_dist import cli
from alphadecay_dist.commands import COMMANDS, Command

ROOT = Path(__file__).parents[2]
SLOW = (
    "torch",
    "numpy",
    "timm",
    "transformers",
    "deepspeed",
    "datasets",
    "sentencepiece",
    "safetensors",
    "wandb",
)
RUN = f"""
import contextlib, io, json, sys
import {{module}}
answers = []
for line in {{lines}}:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = {{module}}.main(line)
        except SystemExit as end:
            code = end.code
    loaded = [name for name in {SLOW} if name in sys.modules]
    answers.append([out.getvalue(), errors.getvalue(), code, loaded])
print(json.dumps(answers))
"""
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def answers(module, lines):
    """What command lines print on stdout and stderr, their exit codes, and the slow packages loaded by then.

    One process reads them all: where one loads something slow, the test of that line is the first to fail.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(module=module, lines=lines)],
        env={name: value for name, value in os.environ.items() if name not in OF_RANKS},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


ACTIONS = (["data", "prepare"], ["data", "verify"])


def test_help_loads_nothing_slow():
    commands = [[], *([name] for name in COMMANDS), *ACTIONS]
    helps = answers("alphadecay_dist.cli", [[*command, "--help"] for command in commands])
    for command, (printed, errors, code, loaded) in zip(commands, helps, strict=True):
        assert (code, errors, loaded) == (0, "", [])
        assert printed.startswith(f"usage: {' '.join(['alphadecay', *command])} ")


MISTAKES = {
    "": "the following arguments are required: COMMAND; see alphadecay --help",
    "planx": "argument COMMAND: invalid choice: 'planx'",
    "--bogus report x": "'--bogus': unknown option; see alphadecay report --help",
    "report": "the following arguments are required: RUN; see alphadecay report --help",
    "report x --ot=y.png": "'--ot=y.png': unknown option; did you mean --out? see alphadecay report --help",
    "report . --out=y.docx": "--out y.docx: found '.docx', expected one of .html, .htm, .png",
    "condition no/such": "no/such: no such file or directory; give the output directory of a run",
    "spectrum x --fit=hil": "argument --fit: invalid choice: 'hil' (choose from",
    "spectrum x --xmin_pos=two": "argument --xmin_pos: invalid float value: 'two'",
    "report no/such": "no/such: no such file or directory; give the output directory of a run",
    "spectrum no/such": "no/such: no such file or directory; give a safetensors file, or",
    "spectrum x --json=no/such/rows.json": "--json no/such/rows.json: found no directory to write to",
    "plan": "the following arguments are required: --world_size; see alphadecay plan --help",
    "plan --world_size=2": "plan: expected either --recipe NAME or --config PATH",
    "plan --world_size=2 --sharding=zero9": "argument --sharding: invalid choice: 'zero9'",
    "plan --world_size=2 --recipe=llama_60": "recipe 'llama_60': unknown; did you mean 'llama_60m'?",
    "plan --world_size=2 --recipe=demo --bandwidth=fast": "--bandwidth: found 'fast', expected bytes",
    "plan --world_size=2 --config=no/such": "--config no/such: no such file or directory; give a HF",
    "plan --world_size=2 --recipe=demo --machine=x": "--machine x: no such file or directory; give the JSON",
    "data": "the following arguments are required: ACTION; see alphadecay data --help",
    "data verify": "the following arguments are required: DIR; see alphadecay data verify --help",
    "data verify no/such": "no/such: no such file or directory; give the directory of a prepared corpus",
    "data prepare --output=x --data.sorce=y": "unknown key data.sorce; did you mean 'source'?",
    "data prepare --output=x --datta.source=y": "unknown section 'datta'; did you mean 'data'?",
    "data prepare --output=x --lr=1": "'--lr=1': unknown option; did you mean --optimizer.lr?",
    "data prepare --output=x --train.steps=0": "train.steps: found 0, expected 1 or more",
    "train --train.step=3": "unknown key train.step; did you mean 'steps'?",
    "train --lr=3": "'--lr=3': unknown option; did you mean --optimizer.lr? see alphadecay train --help",
    "doctor --train.step=3": "unknown key train.step; did you mean 'steps'?",
    "doctor --train.steps=many": "train.steps: found 'many', expected int",
    "doctor --train.steps": "'train.steps': expected --section.key=value, such as --train.steps=100",
    "doctor --engine=fsdp": "argument --engine: invalid choice: 'fsdp'",
    "doctor --timout=3": "'--timout=3': unknown option; did you mean --timeout?",
    "export x --to=onnx": "argument --to: invalid choice: 'onnx'",
    "export x": "the following arguments are required: --to, --output",
    "export no/such --to=hf --output=x": "no/such: no such file or directory; give the directory of a run",
    "table no/such": "no/such: no such file or directory; give a YAML file such as slurm/table.yaml, or",
    "table": "the following arguments are required: table, or --preset; see alphadecay table --help",
    "table adamw": "table 'adamw': expected PRESET:SIZE, perhaps with :WAY and :SEEDS, such as adamw:60m",
    "table --preset=adamw --size=6m": "--size 6m: not in adamw; did you mean '60m'?",
    "table adamw:60m --train.step=3": "unknown key train.step; did you mean 'steps'?",
    "table adamw:60m --run --ranks=0": "--ranks: found 0, expected 1 or more",
}


@pytest.fixture(scope="module")
def refusals():
    return dict(
        zip(MISTAKES, answers("alphadecay_dist.cli", [line.split() for line in MISTAKES]), strict=True)
    )


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_loads_nothing_slow(refusals, line):
    _, errors, code, loaded = refusals[line]
    assert (code, loaded) == (2, [])
    (error,) = errors.splitlines()
    command = line.partition(" ")[0]
    of_ranks = command in COMMANDS and COMMANDS[command].on_every_rank
    program = f"alphadecay {command}" if of_ranks else "alphadecay"
    assert error.startswith(f"{program}: error: {MISTAKES[line]}")


OF_THE_TRAINER = {
    "--train.step=3": "unknown key train.step; did you mean 'steps'?",
    "--lr=3": "'--lr=3': unknown option; did you mean --optimizer.lr?",
    "--accept_changes=all": "argument --accept_changes: found 'all', expected some of model,tokenizer,",
}


def test_the_trainers_help_and_mistakes_in_its_options_load_nothing_slow():
    (printed, *rest), *refused = answers("train", [["--help"], *([line] for line in OF_THE_TRAINER)])
    assert rest == ["", 0, []]
    assert "--train.steps=100" in printed
    for error, (_, errors, code, loaded) in zip(OF_THE_TRAINER.values(), refused, strict=True):
        assert (code, loaded) == (2, [])
        assert errors.startswith(f"train.py: error: {error}")


def test_every_command_has_a_module_and_every_module_of_one_is_registered():
    modules = {row.module: import_module(row.module) for row in COMMANDS.values()}
    assert all(callable(own.add_arguments) and callable(own.run) for own in modules.values())
    files = (ROOT / "alphadecay_dist" / "commands").glob("*.py")
    found = {file.stem for file in files if "def add_arguments(" in file.read_text()}
    assert {f"alphadecay_dist.commands.{stem}" for stem in found} == set(modules)


TOY = """
def add_arguments(parser):
    parser.add_argument("number", type=int)


def run(args):
    print(f"twice is {2 * args.number}")
    return 3
"""


def test_a_command_of_another_package_is_a_row_and_a_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy_commands").mkdir()
    (tmp_path / "toy_commands" / "twice.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "twice", Command("toy_commands.twice", "doubles a number"))
    assert cli.main(["twice", "4"]) == 3
    assert capsys.readouterr().out == "twice is 8\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "doubles a number" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "unbuffered"),  # what is printed goes out at the end, or line by line
    [(["table", "slurm/table.yaml", "--dry-run"], ""), (["table", "adamw:60m"], "1"), (["--help"], "")],
)
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(words, unbuffered):
    """As in ``alphadecay table ... | head``."""
    command = [sys.executable, "-m", "alphadecay_dist", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    ) as ended:
        ended.stdout.close()
        assert ended.stderr.read() == b""
    assert ended.returncode == 1
