"""A checkpoint -> the directory that transformers loads: weights, config and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.checkpoint.restore import StoredWhole, stored_weights
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.changes import differing
from alphadecay_dist.training.state import SavedState
from alphadecay_dist.training.tasks.language.architecture import architecture_of
from alphadecay_dist.training.tasks.language.conversion import Conversion
from alphadecay_dist.training.tasks.language.model import (
    build_on_meta,
    config_of,
    read_model_config,
    values_of,
)
from alphadecay_dist.training.tasks.language.tokenizer_export import tokenizer_of

SHARD_BYTES = 4_000_000_000  # of a safetensors file, which is held in memory while it is written


def hf_writer(
    checkpoint: Checkpoint, state: SavedState, dtype: torch.dtype, model: str | None
) -> Callable[[Path], None]:
    """What fills a directory that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Args:
        checkpoint: what to export.
        state: the trainer's, in it.
        dtype: of the weights on disk.
        model: the model's config JSON, for a checkpoint that does not keep it.

    Raises:
        UserError: model or tokenizer are not found.
    """
    config = model_config(checkpoint, state, model)
    weights = stored_weights(checkpoint)
    _same_shapes(config, weights, checkpoint.folder)
    tokenizer = tokenizer_of(checkpoint, state)
    longest = (
        getattr(config, "max_position_embeddings", None) or state.config.train.seq_len
    )  # some have no end

    def write(folder: Path) -> None:
        _write_weights(folder, weights, Conversion(build_on_meta(config)), dtype)
        special = tokenizer.special_ids
        settings = {**_settings(config, dtype), **special, **tokenizer.settings, "pad_token_id": None}
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", special)
        for name, content in tokenizer.files(longest).items():
            (folder / name).write_bytes(content)

    return write


def _settings(config: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a model, of its architecture in transformers."""
    own: dict[str, Any] = config.to_diff_dict()
    kind = architecture_of(config).kind.__name__
    return {**own, "use_cache": True, "architectures": [kind], "dtype": str(dtype).removeprefix("torch.")}


def model_config(checkpoint: Checkpoint, state: SavedState, given: str | None) -> Any:
    """The model's config as the run keeps it; checkpoints of before it was kept name its file alone.

    Raises:
        UserError: there is none, or another one was given.
    """
    seq_len, kept = state.config.train.seq_len, state.inputs
    if kept is None:
        return read_model_config(given or state.config.model.name, seq_len)
    own = config_of(f"of {checkpoint.folder}", kept.model, seq_len)
    if given is not None:
        for difference in differing(values_of(read_model_config(given, seq_len)), values_of(own)):
            raise UserError(f"--model {given}: {difference}; leave --model out: the run keeps its own")
    return own


def _same_shapes(config: Any, weights: dict[str, StoredWhole], folder: Path) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in build_on_meta(config).named_parameters()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise UserError(
            f"{folder}: {odd[0]} has shape {found.get(odd[0])}, the model's config says "
            f"{expected.get(odd[0])}; give the config.json that it was trained with as --model"
        )


def _write_weights(
    folder: Path, weights: dict[str, StoredWhole], conversion: Conversion, dtype: torch.dtype
) -> None:
    """The weights as safetensors, a file of a few gigabytes at a time, and an index of several files."""
    groups = {names[0]: names for names in conversion.groups(weights)}
    sizes = {name: weight.shape.numel() * dtype.itemsize for name, weight in weights.items()}
    files = _files({first: sum(sizes[name] for name in names) for first, names in groups.items()})
    homes: dict[str, str] = {}
    for number, members in enumerate(files, 1):
        whole = (
            "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        )
        tensors: dict[str, Tensor] = {}
        for first in members:
            tensors |= conversion.stored({name: weights[name].read().to(dtype) for name in groups[first]})
        save_file(tensors, folder / whole, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, whole)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": homes}
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
