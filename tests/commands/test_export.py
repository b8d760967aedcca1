"""What is exported to Hugging Face's format is the trained model; half of it is never there."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alphadecay_dist import cli
from alphadecay_dist.checkpoint.reader import read
from alphadecay_dist.commands import formats
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.tasks.language import export, model
from tests.foreign import init_error, spectrum_error
from tests.training.runs import SIZES, final_weights, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


def trained_run(folder, tied):
    """A run of three updates, and its options."""
    options = tiny_options(folder, train__steps=3, data__pack=True)
    (folder / "tiny.json").write_text(json.dumps(SIZES | {"tie_word_embeddings": tied}))
    train_on(1, "ddp", folder / "run", options)
    return folder / "run", options


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three updates, and its options."""
    return trained_run(tmp_path_factory.mktemp("export"), tied=False)


def exported(run, output, *options):
    assert cli.main(["export", str(run), "--to", "hf", "--output", str(output), *options]) == 0
    return output


def trained_logits(run, ids):
    """Logits of the model that was trained, built and filled as the trainer does."""
    config = formats.trained(run).config
    built = model.build_model(model.read_model_config(config.model.name, config.train.seq_len), config.train)
    weights = final_weights(run)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(weights[name])
        return torch.nn.functional.linear(built.model(input_ids=ids).last_hidden_state, built.lm_head.weight)


def check_loads(run, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    ids = tokenizer(["It was the best of times,"], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trained_logits(run, ids))
    written = loaded.generate(ids, max_new_tokens=5, do_sample=False)
    assert written.shape[1] > ids.shape[1]
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id == 1


def test_transformers_loads_the_trained_model_and_its_tokenizer(run, tmp_path):
    check_loads(run[0], exported(run[0], tmp_path / "hf"))


def test_a_head_that_is_the_embedding_stays_so(tmp_path):
    tied, _ = trained_run(tmp_path, tied=True)
    folder = exported(tied, tmp_path / "hf")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    check_loads(tied, folder)


def test_several_files_and_bf16(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 100_000)
    folder = exported(run[0], tmp_path / "hf", "--dtype", "bfloat16")
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"].values()} == {file.name for file in files}
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert index["metadata"]["total_size"] == sum(2 * tensor.numel() for tensor in tensors.values())
    weights = final_weights(run[0])
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name].bfloat16()) for name in weights)
    assert len(files) > 2
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.named_parameters())


def test_another_run_begins_with_the_weights(run, tmp_path):
    folder = exported(run[0], tmp_path / "hf")
    begin = [
        f"--init_from={folder}",
        f"--model.name={folder}/config.json",
        f"--tokenizer.model={folder}/tokenizer.model",
        "--optimizer.lr=0",
        "--train.steps=1",
    ]
    train_on(1, "ddp", tmp_path / "next", [*run[1], *begin])
    found, expected = final_weights(tmp_path / "next"), final_weights(run[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def spectra(path, output):
    rule = ["--weight_decay", "1.0", "--min_ratio", "0.6666", "--max_ratio", "5"]
    assert cli.main(["spectrum", str(path), *rule, "--json", str(output)]) == 0
    return {row["name"]: row for row in json.loads(output.read_text())}


def test_its_spectrum_is_the_runs(run, tmp_path):
    folder = exported(run[0], tmp_path / "hf")
    assert spectra(folder, tmp_path / "hf.json") == spectra(run[0], tmp_path / "run.json")


def test_a_run_is_not_weights_until_it_is_exported(run, capsys):
    step = next((run[0] / "checkpoints").glob("step-*"))
    for path in (run[0], run[0] / "checkpoints", step):
        line = init_error(path)
        assert all(word in line for word in ("checkpoint of this trainer", "alphadecay export")), line
    for path in (step / "shards", next((step / "shards").iterdir())):
        for line in (spectrum_error(capsys, path), init_error(path)):
            assert f"is a part of a checkpoint of this trainer; give {step}" in line, line
    for path in (run[0], run[0] / "checkpoints"):
        with pytest.raises(UserError, match="is a run, expected one of its checkpoints"):
            read(path)


def refusal(capsys, *command):
    capsys.readouterr()
    assert cli.main(["export", *map(str, command)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("form", ["hf", "deepspeed"])
def test_what_is_there_is_never_overwritten(run, tmp_path, capsys, form):
    output = tmp_path / "out"
    output.mkdir()
    assert cli.main(["export", str(run[0]), "--to", form, "--output", str(output)]) == 0  # empty
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "is there already" in refusal(capsys, run[0], "--to", form, "--output", output)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("form", ["hf", "deepspeed"])
def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, capsys, form):
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        line = refusal(capsys, run[0], "--to", form, "--output", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "cannot be written" in line
    assert "File too large" in line
    assert not [*tmp_path.iterdir()]


KILLED = """
import os, signal, sys
from alphadecay_dist import cli
from alphadecay_dist.training.tasks.language import export
export._write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


def test_an_export_that_is_killed_is_not_there_and_is_made_anew(run, tmp_path):
    command = ["export", str(run[0]), "--to", "hf", "--output", str(tmp_path / "out")]
    assert subprocess.run([sys.executable, "-c", KILLED, *command], check=False).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    assert cli.main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_mistakes_are_one_line(run, tmp_path, capsys):
    to = ["--to", "hf", "--output", tmp_path / "out"]
    (tmp_path / "empty").mkdir()
    assert "found neither a run nor a checkpoint" in refusal(capsys, tmp_path / "empty", *to)
    assert "no such file or directory" in refusal(capsys, tmp_path / "none", *to)
    alone = shutil.copytree(next((run[0] / "checkpoints").glob("step-*")), tmp_path / "a" / "b" / "alone")
    assert "tokenizer.model: cannot be read" in refusal(capsys, alone, *to)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(SIZES | {"intermediate_size": 180}))
    assert "intermediate_size: found 180" in refusal(capsys, run[0], *to, "--model", other)
    assert "no such file" in refusal(capsys, run[0], *to, "--model", tmp_path / "none.json")
    assert not Path(tmp_path / "out").exists()
