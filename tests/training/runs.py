"""Tiny runs of the real trainer inside forked ranks, and the same run in plain torch."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import train
from alphadecay_dist import AlphaDecay
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.checkpoint.restore import stored_weights
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.data.batches import IGNORE, Batch, TrainingData
from alphadecay_dist.training.data.corpus import open_corpora
from alphadecay_dist.training.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from alphadecay_dist.training.optimizer import build_optimizer, learning_rate
from alphadecay_dist.training.outputs.run_files import read_lines
from alphadecay_dist.training.recipe import NFKC, Config, DataConfig
from alphadecay_dist.training.tasks.language import model as models
from alphadecay_dist.training.tasks.language.initial_values import random_values
from tests.multirank import run_ranks

ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}


ENGINES = {
    "fsdp2": ["--engine", "fsdp2"],
    "hsdp": ["--engine.replicate=2"],
    "ddp": ["--engine", "ddp"],
}


def tiny_options(folder: Path, **overrides: Any) -> list[str]:
    """Options of a tiny fp32 run of 30 updates on the demo's text; a decay strong enough to be seen."""
    model = folder / "tiny.json"
    if not model.is_file():
        model.write_text(json.dumps(SIZES))
        (folder / "tiny.model").write_bytes(_tokenizer())
    options = {
        "model.name": str(model),
        "tokenizer.model": str(folder / "tiny.model"),
        "train.steps": 30,
        "train.global_batch": 12,
        "train.micro_batch": 4,
        "train.seq_len": 32,
        "train.dtype": "float32",
        "train.clip": 1.0,
        "optimizer.lr": 0.003,
        "decay.weight_decay": 1.0,
        "decay.interval": 10,
        "checkpoint.every": 0,
        "checkpoint.keep": 0,
        "eval.every": 0,
        "eval.tokens": 2000,
        "logging.wandb": "off",
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return [f"--{key}={value}" for key, value in options.items()]


@functools.cache
def _tokenizer() -> bytes:
    corpus, _ = open_corpora(DataConfig())
    return train_tokenizer((text for _, text in corpus.rows(0, 0)), SIZES["vocab_size"], NFKC).proto


def launch(*command: object, folder: Path = ROOT) -> tuple[int, str]:
    """Run a command in a folder, without network, home or prompt: exit code and whole output."""
    unwanted = ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted and not k.startswith("WANDB")}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HOME": "/nonexistent",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def train_on(world_size: int, engine: str, output: Path, options: list[str]) -> dict[str, Any]:
    """Run the trainer on forked ranks; returns what it left behind.

    Args:
        world_size: number of ranks.
        engine: ``fsdp2``, ``hsdp`` (two replicas), ``ddp``; ``0``, ``1``, ``2``, ``3``, ``3_offload`` (ZeRO),
            or a JSON.
        output: the output directory.
        options: the trainer's other options.
    """
    codes = run_ranks(train.main, world_size, argv_of(engine, output, options))
    assert codes == [0] * world_size
    return left_behind(output)


def argv_of(engine: str, output: Path, options: list[str]) -> list[str]:
    """The trainer's command line; arguments as in :func:`train_on`."""
    return [*engine_options(engine), "--output_dir", str(output), *options]


def engine_options(engine: str) -> list[str]:
    """The trainer's options for an engine, named as in :func:`train_on`."""
    return ENGINES.get(engine) or ["--deepspeed", engine if engine.endswith(".json") else str(_json(engine))]


def _json(stage: str) -> Path:
    own = ROOT / "tests" / "training" / "zero0.json"  # ds_configs/ has none: nothing is sharded there
    return own if stage == "0" else ROOT / "ds_configs" / f"zero{stage}.json"


def left_behind(output: Path) -> dict[str, Any]:
    """The JSON-lines files of a run by stem; one that was not begun has no lines."""
    files = {name: output / f"{name}.jsonl" for name in ("metrics", "eval", "decay", "spectra", "sequences")}
    return {name: read_lines(path) if path.is_file() else [] for name, path in files.items()}


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Largest relative distance (Frobenius norms) between equally named weights."""
    with torch.no_grad():
        return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    """fp32 weights of a run's last checkpoint."""
    checkpoint = newest(output / "checkpoints")
    assert checkpoint is not None
    return {name: weight.read() for name, weight in stored_weights(checkpoint).items()}


def summed_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The loss from the logits of the whole micro-batch."""
    hidden = model.model(input_ids=batch.input_ids).last_hidden_state
    logits = torch.nn.functional.linear(hidden, model.lm_head.weight)
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
    )


def plain_torch(
    options: list[str], tokenizer: Path, schedule: Mapping[int, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """The same run as a plain one-process loop without any engine.

    Args:
        options: the trainer's options.
        tokenizer: the tokenizer of the run to compare with.
        schedule: decays by module, written before the update after step s; None lets AlphaDecay find them.

    Returns:
        losses, grad_norms, refreshes and the final weights.
    """
    config = load_config("demo", [option.removeprefix("--") for option in options])
    model_config = models.read_model_config(config.model.name, config.train.seq_len)
    model = models.build_model(model_config, config.train)
    shapes = models.build_on_meta(model_config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_values(shapes, config.train.seed)(name))
    optimizer = build_optimizer(model, config.optimizer, config.decay, fused=False)
    decay = None if schedule is not None else _controller(model, optimizer, config)
    data = TrainingData(
        open_corpora(config.data)[0],
        SentencePieceTokenizer(tokenizer.read_bytes()),
        config.data,
        config.train,
        0,
        1,
    )
    losses, norms, refreshes = [], [], []
    for step in range(config.train.steps):
        batches = data.next_update()
        tokens = sum(batch.targets for batch in batches)
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = summed_loss(model, batch) / tokens
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, config.train.steps, config.optimizer)
            if schedule is not None and step in schedule:
                group["weight_decay"] = schedule[step].get(group["module"], group["weight_decay"])
        refresh = decay.step() if decay else None
        refreshes += [refresh] if refresh else []
        optimizer.step()
        losses.append(total)
        norms.append(float(norm))
    return {"losses": losses, "norms": norms, "refreshes": refreshes, "weights": model.state_dict()}


def _controller(model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: Config) -> AlphaDecay:
    return AlphaDecay(model, optimizer, settings=config.decay)


TIMES = ("tokens_per_second", "step_seconds", "seconds")


def without_times(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run left behind, less what a clock gave."""
    return {
        name: [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        for name, lines in run.items()
    }


def same_weights(left: Path, right: Path) -> bool:
    """Whether the last checkpoints of two runs have the same weights, bit for bit."""
    one, other = final_weights(left), final_weights(right)
    return all(torch.equal(one[name], other[name]) for name in one)
