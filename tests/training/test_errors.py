"""A user's mistake is one line on rank 0 and exit code 2, whatever started the ranks."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

import train
from alphadecay_dist import cli
from alphadecay_dist.training.data.sentencepiece_tokenizer import train_tokenizer
from alphadecay_dist.training.preflight import resolve
from alphadecay_dist.training.process.exit_codes import exit_code_of
from alphadecay_dist.training.recipe import NFKC
from tests.foreign import UP, llama_weights
from tests.ports import free_port
from tests.training.errors import ZERO2, error_of_ranks, the_error_line
from tests.training.runs import SIZES, launch, tiny_options


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def deepspeed_json(folder, **options):
    return str(write(folder / "ds.json", {"zero_optimization": {"stage": 2}, **options}))


def model_json(folder, **sizes):
    return f"--model.name={write(folder / 'model.json', {**SIZES, **sizes})}"


def small_corpus(folder):
    return write(folder / "small.txt", "\n\n".join(["a few words"] * 11))


def quantised(folder):
    """A model of which one matrix is in FP8."""
    weights = llama_weights()
    save_file(weights | {UP: weights[UP].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def file_of_ids(folder, pieces):
    path = folder / "large.model"
    path.write_bytes(
        train_tokenizer((f"{i} {i * 7919} word{i % 97}" for i in range(5000)), pieces, NFKC).proto
    )
    return path


def prepared(folder):
    """The small corpus, tokenized with the tokenizer of the tiny runs."""
    argv = ["data", "prepare", "--output", str(folder / "prepared"), f"--data.source={small_corpus(folder)}"]
    assert cli.main([*argv, "--data.holdout=11", *tiny_options(folder)]) == 0
    return folder / "prepared"


# What is wrong: options from a folder, and the words that the line must have.
BEFORE_THE_RANKS_MEET = {
    "factors of no module": (
        lambda _: ["--decay.policy=static", "--decay.factors=nothing=2"],
        ["factors: 'nothing' matches no tuned module"],
    ),
    "unknown recipe": (lambda _: ["--recipe=llama_60"], ["'llama_60'", "did you mean 'llama_60m'"]),
    "missing recipe file": (lambda _: ["--recipe=no/such.yaml"], ["no/such.yaml: no such file"]),
    "unknown key": (lambda _: ["--train.stepz=3"], ["train.stepz", "did you mean 'steps'"]),
    "unknown section": (lambda _: ["--trian.steps=3"], ["'trian'", "did you mean 'train'"]),
    "unknown option": (lambda _: ["--resum=none"], ["'--resum=none'", "unknown option", "--help"]),
    "value of nothing": (lambda _: ["--overwrite", "3"], ["'3'", "belongs to no option", "--help"]),
    "option without value": (lambda _: ["--output_dir"], ["--output_dir", "expected one argument"]),
    "wrong type": (lambda _: ["--train.steps=many"], ["train.steps", "'many'", "int"]),
    "lag": (lambda _: ["--decay.lag=-1"], ["decay.lag", "-1", "0 <= lag"]),
    "lag of an interval": (
        lambda _: ["--decay.interval=9", "--decay.lag=9"],
        ["lag", "9 with interval 9", "0 <= lag < interval"],
    ),
    "device": (lambda _: ["--decay.device=gpu"], ["decay.device", "gpu", "auto, cuda, cpu"]),
    "interval 0": (lambda _: ["--decay.interval=0"], ["decay.interval", "0", "1 or more"]),
    "min above max": (
        lambda _: ["--decay.min_ratio=6"],
        ["decay.min_ratio", "6", "max_ratio 5", "min_ratio <= max_ratio"],
    ),
    "no DeepSpeed JSON": (lambda _: ["--deepspeed=no.json"], ["--deepspeed no.json", "no such file"]),
    "not JSON": (lambda f: [f"--deepspeed={write(f / 'ds.json', '{stage: 2}')}"], ["ds.json", "not JSON"]),
    "optimizer section": (
        lambda f: ["--deepspeed", deepspeed_json(f, optimizer={"type": "AdamW"})],
        ["'optimizer' section", "remove the section"],
    ),
    "contradiction": (
        lambda f: ["--deepspeed", deepspeed_json(f, train_batch_size=48)],
        ["train_batch_size is 48", "12", "train.global_batch"],
    ),
    "SuperOffload": (
        lambda f: [
            "--deepspeed",
            deepspeed_json(f, zero_optimization={"stage": 3, "offload_optimizer": {"super_offload": True}}),
        ],
        ["SuperOffload", "remove it"],
    ),
    "ZenFlow": (
        lambda f: ["--deepspeed", deepspeed_json(f, zero_optimization={"stage": 2, "zenflow": {}})],
        ["ZenFlow", "remove it"],
    ),
    "missing data": (lambda _: ["--data.source=no/such.txt"], ["no/such.txt", "no such file"]),
    "missing validation data": (
        lambda f: [f"--data.source={small_corpus(f)}", "--data.validation=no*.txt"],
        ["no*.txt", "no such file"],
    ),
    "nothing prepared": (
        lambda f: [f"--data.prepared={f / 'no'}"],
        ["no: has no manifest.json", "data prepare"],
    ),
    "prepared for another tokenizer": (
        lambda f: [f"--data.prepared={prepared(f)}", f"--tokenizer.model={file_of_ids(f, 300)}"],
        ["large.model", "not the one", "prepared with"],
    ),
    "prepared for a tokenizer to be trained": (
        lambda f: [f"--data.prepared={prepared(f)}", "--tokenizer.model=train"],
        ["found 'train'", "prepared with", "--tokenizer.model="],
    ),
    "ranks do not divide": (
        lambda _: ["--train.global_batch=13"],
        ["train.global_batch", "13", "2 ranks"],
    ),
    "unknown model": (lambda _: ["--model.name=llama_7b"], ["'llama_7b'", "did you mean 'llama_"]),
    "heads do not divide": (
        lambda f: [model_json(f, num_attention_heads=3)],
        ["hidden_size 64", "num_attention_heads 3"],
    ),
    "unknown activation": (lambda f: [model_json(f, hidden_act="nope")], ["model.json", "nope"]),
    "another architecture": (
        lambda f: [model_json(f, model_type="mamba")],
        ["model.json", "mamba has no num_attention_heads", "state-space models, are not trained"],
    ),
    "quantised weights to start from": (
        lambda f: [f"--init_from={quantised(f)}"],
        ["--init_from", "model.safetensors", UP, "is quantised", "F8_E4M3"],
    ),
    "nothing to tune": (lambda f: [model_json(f, hidden_size=32)], ["no module to tune", "50 rows"]),
    "too long for the model": (lambda _: ["--train.seq_len=65"], ["train.seq_len", "65", "64"]),
    "no checkpoint to start from": (lambda f: [f"--init_from={f}"], ["--init_from", "safetensors"]),
    "output_dir is a file": (
        lambda f: [f"--output_dir={write(f / 'taken', 'x')}"],
        ["--output_dir", "taken", "is a file"],
    ),
    "output_dir below a file": (
        lambda f: [f"--output_dir={write(f / 'taken', 'x')}/run"],
        ["--output_dir", "taken", "no directory"],
    ),
}
ENGINES = {
    "two engines": (
        lambda _: ["--engine=ddp", "--deepspeed", ZERO2],
        ["engine.name", "'ddp' with --deepspeed", "one of the two"],
    ),
    "no JSON": (
        lambda _: ["--engine.name=deepspeed"],
        ["'deepspeed' without --deepspeed", "--deepspeed zero2"],
    ),
    "unknown engine": (lambda _: ["--engine=fsdp"], ["--engine", "'fsdp'", "fsdp2"]),
    "replicas of ddp": (
        lambda _: ["--engine=ddp", "--engine.replicate=2"],
        ["engine.replicate", "2", "ddp", "fsdp2 alone"],
    ),
}
AFTER_THE_RANKS_MEET = {
    "replicas do not divide": (
        lambda _: ["--engine.replicate=3"],
        ["engine.replicate", "3", "divisor", "ranks, 2"],
    ),
    "too short": (
        lambda f: [f"--data.source={small_corpus(f)}", f"--data.validation={small_corpus(f)}"],
        ["too short for one batch", "11 of the 12 sequences"],
    ),
    "too short when prepared": (
        lambda f: [f"--data.prepared={prepared(f)}"],
        ["too short for one batch", "10 of the 12 sequences"],
    ),
    "too short for a validation set": (
        lambda f: [f"--data.source={small_corpus(f)}", "--train.global_batch=2"],
        ["small.txt", "every 100th", "no document", "data.holdout"],
    ),
    "broken data": (
        lambda f: [f"--data.source={write(f / 'broken.json', '{')}"],
        ["broken.json", "row 0", "is not whole"],
    ),
    "no text field": (
        lambda f: [f"--data.source={write(f / 'a.json', [{'body': 'x'}] * 50)}", "--tokenizer.model=train"],
        ["a.json", "row 0", "its fields: body", "data.text_field"],
    ),
    "ids outside the vocabulary": (
        lambda f: [f"--tokenizer.model={file_of_ids(f, 600)}"],
        ["token ids up to 599", "ends at 511", "vocab_size"],
    ),
    "no tokenizer": (lambda _: ["--tokenizer.model=./none.model"], ["none.model", "no such file"]),
    "no sentencepiece model": (
        lambda f: [f"--tokenizer.model={write(f / 'text.model', 'text')}"],
        ["text.model", "not a sentencepiece model"],
    ),
    "resume from nowhere": (
        lambda f: [f"--resume={f / 'none'}"],
        ["--resume", "none: no such", "a checkpoint"],
    ),
}
MISTAKES = {**BEFORE_THE_RANKS_MEET, **ENGINES, **AFTER_THE_RANKS_MEET}


def argv_of(name, folder):
    """Options of a run that has nothing wrong but this."""
    wrong, words = MISTAKES[name]
    engine = [] if name in ENGINES or name.startswith("replicas") else ["--deepspeed", ZERO2]
    argv = [*engine, "--output_dir", str(folder / "run"), *tiny_options(folder, data__pack=False)]
    return [*argv, *wrong(folder)], words


@pytest.mark.parametrize("name", [*BEFORE_THE_RANKS_MEET, *ENGINES])
def test_a_mistake_is_one_line_before_the_ranks_meet(tmp_path, monkeypatch, capfd, name):
    """What each rank finds alone: here rank 0 of two, in this process, where the other never comes."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv, words = argv_of(name, tmp_path)
    assert exit_code_of(lambda: resolve(train.parse(argv))) == 2
    line = the_error_line(capfd.readouterr().err)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize("name", ["contradiction", *AFTER_THE_RANKS_MEET])
def test_a_mistake_is_one_line_on_rank_0_and_exit_code_2_on_all(tmp_path, name):
    argv, words = argv_of(name, tmp_path)
    line = error_of_ranks(argv)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
@pytest.mark.ranks
def test_resume_none_leaves_a_run_that_is_there_as_it_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write(run / "status.json", {"state": "failed", "step": 3, "exit_code": 1, "reason": "x"})
    write(run / "metrics.jsonl", '{"step": 1}\n')
    before = {path.name: path.read_text() for path in run.iterdir()}
    argv = ["--deepspeed", ZERO2, "--output_dir", str(run), "--resume", "none", *tiny_options(tmp_path)]
    line = error_of_ranks(argv)
    assert all(word in line for word in ("--resume none", str(run), "already holds a run", "--overwrite"))
    assert {path.name: path.read_text() for path in run.iterdir()} == before


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_mistake_on_1_or_3_ranks_is_one_line_too(tmp_path, world_size):
    argv, words = argv_of("too short", tmp_path)
    line = error_of_ranks(argv, world_size)
    assert words[0] in line


@pytest.mark.launcher
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in ("unknown recipe", "heads do not divide")),
        "too short",
    ],
)
def test_the_deepspeed_launcher_hands_on_line_and_code(tmp_path, name):
    argv, words = argv_of(name, tmp_path)
    launcher = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port())]
    code, text = launch(*launcher, "train.py", *argv)
    assert code == 2, text
    line = the_error_line(text)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
def test_torchrun_hands_on_the_line_and_fails(tmp_path):
    argv, words = argv_of("contradiction", tmp_path)
    code, text = launch(
        "torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "train.py", *argv
    )
    assert code == 1  # torchrun's own, whatever the ranks gave
    lines = [line for line in text.splitlines() if line.startswith("train.py: error:")]
    assert len(lines) == 1, text
    assert all(word in lines[0] for word in words), text
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
@pytest.mark.parametrize(
    "name", [pytest.param("unknown key", marks=pytest.mark.long), "ids outside the vocabulary"]
)
def test_without_a_launcher_it_is_the_same_line_and_code(tmp_path, name):
    argv, words = argv_of(name, tmp_path)
    code, text = launch(sys.executable, "train.py", *argv)
    assert code == 2, text
    line = the_error_line(text)
    assert line.startswith("train.py: error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()
