"""A torch distributed checkpoint -> its fp32 weights, one at a time, without an engine."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from alphadecay_dist.engines.torch_training import SHARDS
from alphadecay_dist.errors import UserError

WEIGHTS = "model."  # how the keys of weights begin


@dataclass(frozen=True)
class StoredWeight:
    """A weight that is put together when it is asked for."""

    folder: Path
    name: str
    shape: torch.Size

    def contiguous(self) -> Tensor:
        """The weight, fp32."""
        key, weight = WEIGHTS + self.name, torch.empty(self.shape)
        dcp.load({key: weight}, checkpoint_id=self.folder, no_dist=True)
        return weight


def fp32_weights(folder: Path) -> dict[str, StoredWeight]:
    """The weights of a checkpoint by name; its metadata is a pickle: open only those that you trust.

    Raises:
        UserError: the files cannot be read.
    """
    shards = folder / SHARDS
    try:
        tensors = dcp.FileSystemReader(shards).read_metadata().state_dict_metadata
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder}: its weights cannot be read: {error}") from None
    return {
        key.removeprefix(WEIGHTS): StoredWeight(shards, key.removeprefix(WEIGHTS), stored.size)
        for key, stored in tensors.items()
        if key.startswith(WEIGHTS) and isinstance(stored, TensorStorageMetadata)
    }
