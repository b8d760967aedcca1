"""Keys and tokens of the environment are used, and never written or printed."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from alphadecay_dist import cli
from tests.multirank import run_ranks
from tests.ports import free_port
from tests.test_package import program
from tests.training.errors import main_and_output
from tests.training.runs import argv_of, left_behind, tiny_options

SECRETS = {
    "WANDB_API_KEY": "wbkey5ecret" + "0123456789abcdef" * 2,
    "HF_TOKEN": "hf_t0ken" + "A1b2C3d4" * 4,
    "HUGGING_FACE_HUB_TOKEN": "hf_0ldt0ken" + "E5f6G7h8" * 4,
}
LETTERS = 12  # of a secret that give it away: the rest may be in another block of a file


def leaks(folder, *texts):
    """Where a secret is: files below a folder, packed ones too, and texts by number."""
    found = []
    contents = {str(number): text.encode() for number, text in enumerate(texts)}
    for path in (path for path in Path(folder).rglob("*") if path.is_file()):
        content = path.read_bytes()
        contents[str(path)] = gzip.decompress(content) if path.suffix == ".gz" else content
    for place, content in contents.items():
        found += [(place, name) for name, key in SECRETS.items() if key[:LETTERS].encode() in content]
    return found


@pytest.fixture
def secrets(monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {**SECRETS, "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_a_secret_is_found_wherever_it_lies(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.safetensors").write_bytes(b"\0\1" + SECRETS["HF_TOKEN"].encode()[:20] + b"\0")
    (tmp_path / "y.gz").write_bytes(gzip.compress(SECRETS["WANDB_API_KEY"].encode()))
    found = leaks(tmp_path, "fine", f"of {SECRETS['HUGGING_FACE_HUB_TOKEN']}!")
    assert {name for _, name in found} == set(SECRETS)
    assert len(found) == 3


@pytest.mark.launcher
@pytest.mark.usefixtures("secrets")
def test_a_run_of_two_ranks_with_all_loggers_writes_and_prints_none(tmp_path):
    launcher = ["deepspeed", "--num_gpus", "2", "--master_port", free_port(), "--module", "alphadecay_dist"]
    options = tiny_options(tmp_path, train__steps=2, logging__wandb="offline", checkpoint__every=1)
    options += ["--logging.to=wandb,tensorboard,csv", "--deepspeed=zero3", f"--output_dir={tmp_path}/run"]
    code, printed = program(*launcher, "train", *options)
    assert code == 0, printed
    assert len(left_behind(tmp_path / "run")["metrics"]) == 2
    written = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"config.yaml", "status.json", "events.jsonl", "inputs.json", "state.json"} <= written
    assert any(name.endswith(".wandb") for name in written)
    assert any("tfevents" in name for name in written)
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert cli.main(["export", str(tmp_path / "run"), "--to", "hf", "--output", str(tmp_path / "hf")]) == 0
    assert {path.name for path in (tmp_path / "hf").iterdir()} >= {"README.md", "model.safetensors"}
    assert (tmp_path / "run" / "report.html").exists()
    assert leaks(tmp_path, printed) == []


CRASH = """
import sys
import train
from alphadecay_dist.training.loop import Trainer

Trainer.run = lambda trainer: 1 / 0
train.main(sys.argv[1:])
"""


@pytest.mark.launcher
@pytest.mark.usefixtures("secrets")
def test_a_crash_with_its_traceback_shows_none(tmp_path):
    options = tiny_options(tmp_path, train__steps=2, logging__wandb="offline")
    code, printed = program(sys.executable, "-c", CRASH, *options, f"--output_dir={tmp_path}/run")
    assert code == 1
    assert "ZeroDivisionError" in printed
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert leaks(tmp_path, printed) == []


def of_programs(folder, sizes):
    """What the check, a dry run and mistakes print, with their exit codes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    argv = argv_of("ddp", Path(folder) / "run", sizes)
    yield main_and_output(["doctor", *argv, f"--json={folder}/doctor.json"], cli.main)
    yield main_and_output(["train", *argv, "--dry_run"], cli.main)
    yield main_and_output([*argv, "--data.source=no/such_data"])
    yield main_and_output([*argv, "--tokenizer.model=no/such"])
    os.environ["WANDB_API_KEY"] = SECRETS["WANDB_API_KEY"][:LETTERS]  # too short for wandb, which says so
    yield main_and_output([*argv, "--logging.wandb=online"])


def outcomes_of(folder, sizes):
    return list(of_programs(folder, sizes))


@pytest.mark.ranks
@pytest.mark.usefixtures("secrets")
def test_the_check_a_dry_run_and_errors_print_none(tmp_path):
    (outcomes,) = run_ranks(outcomes_of, 1, str(tmp_path), tiny_options(tmp_path, train__steps=2))
    codes, printed = zip(*outcomes, strict=True)
    assert codes == (0, 0, 2, 2, 2), printed
    assert "WANDB_API_KEY invalid" in printed[4]
    assert leaks(tmp_path, *printed) == []
