"""A checkpoint -> the formats of others: Hugging Face's, and DeepSpeed's universal checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from alphadecay_dist.checkpoint.reader import Checkpoint, find, without_checkpoint
from alphadecay_dist.checkpoint.restore import StoredWhole, stored_tensors, stored_weights
from alphadecay_dist.commands.hf_tokenizer import hf_tokenizer, hf_tokenizer_config, special_ids
from alphadecay_dist.engines.state import WEIGHT
from alphadecay_dist.engines.zero.universal import MASTER, Parameter, write_universal
from alphadecay_dist.errors import UserError
from alphadecay_dist.files import new_directory
from alphadecay_dist.training.build import TOKENIZER
from alphadecay_dist.training.changes import differing
from alphadecay_dist.training.optimizer import learning_rate
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import saved_state
from alphadecay_dist.training.tasks.language.model import (
    build_on_meta,
    config_of,
    read_model_config,
    values_of,
)

SHARD_BYTES = 4_000_000_000  # of a safetensors file, which is held in memory while it is written
DECAYS = "alphadecay.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """What is exported: a whole checkpoint, and the run's config."""

    checkpoint: Checkpoint
    config: Config


def trained(path: Path) -> Trained:
    """The newest whole checkpoint of a run, or the one at a path.

    Raises:
        UserError: there is none.
    """
    checkpoint = find(path)
    if checkpoint is None:
        raise UserError(
            without_checkpoint(path)
            or f"{path}: found neither a run nor a checkpoint; give the directory of one"
        )
    return Trained(checkpoint, saved_state(checkpoint).config)


def export_hf(found: Trained, output: Path, dtype: torch.dtype, model: str | None = None) -> None:
    """Write a directory that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Args:
        found: what to export.
        output: the directory to make.
        dtype: of the weights on disk.
        model: the model's config JSON, for a checkpoint that does not keep it.

    Raises:
        UserError: model or tokenizer are not found, or the output is taken or cannot be written.
    """
    config = _model_config(found, model)
    weights = stored_weights(found.checkpoint)
    _same_shapes(config, weights, found.checkpoint.folder)
    proto = _tokenizer(found.checkpoint)
    tokenizer = hf_tokenizer(proto)
    ids = special_ids(sentencepiece.SentencePieceProcessor(model_proto=proto))

    def write(folder: Path) -> None:
        _write_weights(folder, weights, dtype)
        special = {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}
        settings = {**config.to_diff_dict(), **special, "pad_token_id": None, "use_cache": True}
        settings |= {"architectures": ["LlamaForCausalLM"], "dtype": str(dtype).removeprefix("torch.")}
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", special)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        _write_json(
            folder / "tokenizer_config.json", hf_tokenizer_config(proto, config.max_position_embeddings)
        )
        (folder / TOKENIZER).write_bytes(proto)

    _made(output, write)


def _model_config(found: Trained, given: str | None) -> LlamaConfig:
    """The model's config as the run keeps it; checkpoints of before it was kept name its file alone.

    Raises:
        UserError: there is none, or another one was given.
    """
    seq_len, kept = found.config.train.seq_len, saved_state(found.checkpoint).inputs
    if kept is None:
        return read_model_config(given or found.config.model.name, seq_len)
    own = config_of(f"of {found.checkpoint.folder}", kept.model, seq_len)
    if given is not None:
        for difference in differing(values_of(read_model_config(given, seq_len)), values_of(own)):
            raise UserError(f"--model {given}: {difference}; leave --model out: the run keeps its own")
    return own


def export_universal(found: Trained, output: Path) -> None:
    """Write DeepSpeed's universal checkpoint, and the state of AlphaDecay beside it.

    Raises:
        UserError: there is no optimizer state yet, or the output is taken or cannot be written.
    """
    checkpoint, config = found.checkpoint, found.config
    step = checkpoint.manifest.step
    counters = checkpoint.manifest.scalars.get("step", {})
    tensors = stored_tensors(checkpoint)
    for name, kinds in tensors.items():
        if name not in counters or not kinds.keys() >= set(MOMENTS):
            raise UserError(f"{checkpoint.folder}: has no optimizer state of {name}: no update was made yet")
    optimizer = config.optimizer
    rate = learning_rate(step, config.train.steps, optimizer)
    decay = saved_state(checkpoint).decay

    def parameters() -> Iterator[Parameter]:
        for name, kinds in tensors.items():
            named = {MASTER if kind == WEIGHT else kind: tensor for kind, tensor in kinds.items()}
            yield Parameter(name, ((kind, t.read()) for kind, t in named.items()), counters[name])

    def write(folder: Path) -> None:
        hyper = {"lr": rate, "betas": optimizer.betas, "eps": optimizer.eps}
        write_universal(folder, step, checkpoint.manifest.world_size, parameters(), hyper)
        if decay is not None:
            _write_json(folder / DECAYS, decay)

    _made(output, write)


def _made(output: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a directory, which gets its name when all is on disk: half of it never has it."""
    try:
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise UserError(f"{output}: is there already; give another --output, or remove it")
        with new_directory(output) as folder:
            write(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{output}: cannot be written: {reason}") from None


def _tokenizer(checkpoint: Checkpoint) -> bytes:
    path = checkpoint.folder.resolve().parents[1] / TOKENIZER
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; export the run, or a checkpoint that is in one"
        ) from None


def _same_shapes(config: LlamaConfig, weights: dict[str, StoredWhole], folder: Path) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in build_on_meta(config).named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise UserError(
            f"{folder}: {odd[0]} has shape {found.get(odd[0])}, the model's config says "
            f"{expected.get(odd[0])}; give the config.json that it was trained with as --model"
        )


def _write_weights(folder: Path, weights: dict[str, StoredWhole], dtype: torch.dtype) -> None:
    """The weights as safetensors, a file of a few gigabytes at a time, and an index of several files."""
    files = _files({name: weight.shape.numel() * dtype.itemsize for name, weight in weights.items()})
    names: dict[str, str] = {}
    for number, members in enumerate(files, 1):
        whole = (
            "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        tensors: dict[str, Tensor] = {name: weights[name].read().to(dtype) for name in members}
        save_file(tensors, folder / whole, metadata={"format": "pt"})
        names |= dict.fromkeys(members, whole)
    if len(files) > 1:
        total = sum(weight.shape.numel() * dtype.itemsize for weight in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": names}
        _write_json(folder / "model.safetensors.index.json", index)


def _files(sizes: dict[str, int]) -> list[list[str]]:
    """Names dealt to files in their order; a file ends before it would grow beyond the limit."""
    files: list[list[str]] = []
    filled = SHARD_BYTES
    for name, size in sizes.items():
        if filled + size > SHARD_BYTES or not files:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
