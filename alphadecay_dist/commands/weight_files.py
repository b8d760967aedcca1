"""Weights on disk -> tensors by name, of which one matrix at a time is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from alphadecay_dist.checkpoint.foreign import CONFIG, foreign_tensors, read_config
from alphadecay_dist.checkpoint.reader import Checkpoint, find
from alphadecay_dist.checkpoint.restore import StoredWhole, stored_weights
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.params.fused import Heads
from alphadecay_dist.training.state import saved_state


class StoredTensor(Protocol):
    """A tensor on disk: its name and its shape are known before it is read."""

    @property
    def name(self) -> str:
        """Dotted name of the parameter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    def units(self) -> Iterator[tuple[str, Tensor]]:
        """The tensor by its name, or of a stack (three dimensions) each matrix by name and number."""


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a model on disk.

    Attributes:
        path: where they were found.
        tensors: every tensor, in the model's order as far as the files tell it.
        heads: what is known of the model's attention.
        settings: the rule of the run that saved them; None where no run of ours did.
        config: the config.json beside them; None where there is none.
        values: of a config.json, which a run of ours keeps; None where its architecture needs none.
    """

    path: Path
    tensors: list[StoredTensor]
    heads: Heads | None = None
    settings: Settings | None = None
    config: Path | None = None
    values: dict[str, Any] | None = None


def open_weights(path: Path, trust: bool = False) -> StoredWeights:
    """Find the weights in a file, a directory with such files, or one of our checkpoints.

    Args:
        path: a safetensors file, or a pickle by torch.save; a HF checkpoint's directory, whose config.json
            tells the numbers of heads; the directory of one checkpoint; or that of a run, whose newest whole
            checkpoint is taken.
        trust: whether pickles may be opened.

    Raises:
        UserError: none of these is there, or it cannot be read.
    """
    checkpoint = find(path)
    if checkpoint is not None:
        return _from_checkpoint(checkpoint)
    tensors = foreign_tensors(path, trust, "--trust")
    config = tensors[0].file.parent / CONFIG
    values = read_config(config)
    heads = Heads.of(values) if values else None
    return StoredWeights(path, sorted(tensors, key=_natural), heads, config=config if values else None)


@dataclass(frozen=True)
class _InCheckpoint:
    """An fp32 weight of a checkpoint, and the type that training reads it in."""

    name: str
    shape: tuple[int, ...]
    weight: StoredWhole
    dtype: torch.dtype

    def units(self) -> Iterator[tuple[str, Tensor]]:
        whole = self.weight.read().to(self.dtype)
        if whole.ndim != 3:
            yield self.name, whole
            return
        yield from ((f"{self.name}.{number}", matrix) for number, matrix in enumerate(whole))


def _natural(tensor: StoredTensor) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tensor.name)]


def _from_checkpoint(checkpoint: Checkpoint) -> StoredWeights:
    state = saved_state(checkpoint)
    config, values = state.config, {} if state.inputs is None else state.inputs.model
    dtype = getattr(torch, config.train.dtype)
    tensors: list[StoredTensor] = [
        _InCheckpoint(name, tuple(weight.shape), weight, dtype)
        for name, weight in stored_weights(checkpoint).items()
    ]
    kept = values if "model_type" in values else None  # LLaMA's does not name it, and its names suffice
    return StoredWeights(checkpoint.folder, tensors, Heads.of(values), config.decay, values=kept)
