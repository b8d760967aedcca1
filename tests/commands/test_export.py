"""What is exported to Hugging Face's format is the trained model; half of it is never there."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import train
from alphadecay_dist import __version__, cli
from alphadecay_dist.checkpoint.reader import read
from alphadecay_dist.commands import formats
from alphadecay_dist.commands.model_card import CARD, evaluation_of, model_card
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import config_from_dict
from alphadecay_dist.training.tasks.language import export, model
from tests.foreign import init_error, spectrum_error
from tests.training.runs import SIZES, final_weights, left_behind, tiny_options, train_on

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


def card_in(folder):
    """The card's head, as the hub reads it, and its text."""
    card = ModelCard.load(folder / CARD)
    return card.data, card.text


def test_the_card_tells_what_was_trained_on_what_and_how(run, tmp_path):
    head, text = card_in(exported(run[0], tmp_path / "hf"))
    assert (head.library_name, head.pipeline_tag, head.language) == (
        "transformers",
        "text-generation",
        ["en"],
    )
    assert {"alphadecay", "llama"} <= set(head.tags)
    assert head.eval_results is None, "the hub has no such text"
    weights = sum(value.numel() for value in final_weights(run[0]).values())
    (last,) = [line for line in left_behind(run[0])["eval"] if line["step"] == 3]
    tokens = left_behind(run[0])["metrics"][-1]["tokens"]
    for words in (
        f"2 layers, 64 wide, 2 heads) of {weights:,} weights",
        f"3 updates of 12 sequences, {tokens:,} tokens in all",
        f"| perplexity | {last['perplexity']:.6g} |",
        f"On 1 rank, engine ddp. Trained with alphadecay_dist {__version__}, torch {version('torch')}",
    ):
        assert words in text, words
    decay, others = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert config_from_dict({**others, **decay}) == formats.trained(run[0]).config
    (command,) = re.findall(r"```bash\n(alphadecay train .*)\n```", text)
    assert train.parse(shlex.split(command)[2:]).overrides == tuple(word[2:] for word in run[1])


def test_both_perplexities_of_published_data_are_in_the_head(run, tmp_path):
    own = shutil.copytree(run[0], tmp_path / "run")
    lines = [
        {**line, "perplexity_as_published": 0.97 * line["perplexity"]} for line in left_behind(own)["eval"]
    ]
    (own / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = formats.trained(own)
    config = replace(trained.config, data=replace(trained.config.data, source="c4"))
    inputs = replace(trained.state.inputs, revision="0" * 40, init_from={})
    state = replace(trained.state, config=config, inputs=inputs)
    (tmp_path / CARD).write_text(model_card(trained.checkpoint, state, "transformers"))
    head, text = card_in(tmp_path)
    assert head.datasets == ["allenai/c4"]
    found = {result.metric_name: result for result in head.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        name: lines[-1][name] for name in ("perplexity", "perplexity_as_published")
    }
    one = found["perplexity"]
    assert (one.dataset_type, one.dataset_split, one.dataset_revision) == (
        "allenai/c4",
        "validation",
        "0" * 40,
    )
    assert f"| perplexity_as_published | {lines[-1]['perplexity_as_published']:.6g} |" in text
    assert "from the weights of its `--init_from`: 3 updates" in text


def test_a_checkpoint_without_its_run_has_a_card_with_what_is_known(run, tmp_path):
    alone = shutil.copytree(next((run[0] / "checkpoints").glob("step-*")), tmp_path / "a" / "b" / "alone")
    state = json.loads((alone / "state.json").read_text())
    assert cli.main(["export", str(alone), "--to", "deepspeed", "--output", str(tmp_path / "out")]) == 0
    head, text = card_in(tmp_path / "out")
    assert (head.library_name, head.pipeline_tag) == (None, None), "transformers does not load this one"
    assert "No evaluation after update 3 is known." in text
    assert f"{state['tokens']:,} tokens in all" in text
    found = formats.trained(alone)
    old = model_card(found.checkpoint, replace(found.state, inputs=None), None)  # of before inputs were kept
    assert "versions that the checkpoint does not tell" in old
    assert "does not keep its command" in old
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "eval.jsonl").write_text("not JSON\n")
    beside = read(shutil.copytree(alone, tmp_path / "checkpoints" / alone.name))
    with pytest.warns(UserWarning, match="the card has no evaluation"):
        assert evaluation_of(beside) == {}


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
