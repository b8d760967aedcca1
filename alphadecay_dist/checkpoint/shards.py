"""A rank's file of a checkpoint: its pieces of weights and optimizer state, as safetensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from alphadecay_dist.checkpoint.manifest import StoredFile, StoredPiece, TensorEntry, stored_file
from alphadecay_dist.engines.state import WEIGHT, Part
from alphadecay_dist.files import flush

SHARDS = "shards"  # the folder of a checkpoint that holds the ranks' files
DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float64": "F64"}


@dataclass(frozen=True)
class Shard:
    """What a rank wrote: its file, and what the manifest says of it."""

    file: str
    stored: StoredFile
    tensors: tuple[TensorEntry, ...]


def file_of(rank: int) -> str:
    """Path of a rank's file in a checkpoint: ``shards/rank-00003.safetensors``."""
    return f"{SHARDS}/rank-{rank:05d}.safetensors"


def write_shard(folder: Path, rank: int, parts: Iterable[Part], others: Mapping[str, Tensor]) -> Shard:
    """Write a rank's file.

    Args:
        folder: of the checkpoint; its folder for shards is there.
        rank: this rank.
        parts: what this rank holds; parts that another rank saves are left out.
        others: further tensors of this rank, by key.
    """
    file = file_of(rank)
    tensors, entries = dict(others), []
    for part in parts:
        if part.saved:
            key = f"{part.kind}/{part.name}"
            tensors[key] = part.values.contiguous()
            piece = StoredPiece(file, key, part.index)
            dtype = DTYPES[str(part.values.dtype)]
            entries.append(TensorEntry(part.name, part.kind, part.shape, dtype, (piece,)))
    save_file(tensors, folder / file)
    flush(folder / file)
    return Shard(file, stored_file(folder / file), tuple(entries))


def joined(shards: Iterable[Shard], names: Sequence[str]) -> tuple[TensorEntry, ...]:
    """The tensors of all ranks with all their pieces: weights first, in the order of the names."""
    found: dict[tuple[str, str], list[TensorEntry]] = {}
    for shard in shards:
        for entry in shard.tensors:
            found.setdefault((entry.kind, entry.name), []).append(entry)
    return tuple(_in_order(found, {name: place for place, name in enumerate(names)}))


def _in_order(
    found: Mapping[tuple[str, str], Sequence[TensorEntry]], places: Mapping[str, int]
) -> Iterator[TensorEntry]:
    for kind, name in sorted(found, key=lambda own: (own[0] != WEIGHT, own[0], places[own[1]])):
        entries = found[kind, name]
        pieces = tuple(piece for entry in entries for piece in entry.pieces)
        yield TensorEntry(name, kind, entries[0].shape, entries[0].dtype, pieces)
