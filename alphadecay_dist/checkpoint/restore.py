"""A checkpoint's pieces -> the parts that a rank needs, whichever ranks and engine wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alphadecay_dist.checkpoint.manifest import StoredPiece, TensorEntry
from alphadecay_dist.checkpoint.random_state import PREFIX, set_random_state
from alphadecay_dist.checkpoint.reader import Checkpoint
from alphadecay_dist.checkpoint.shards import file_of
from alphadecay_dist.engines.state import WEIGHT, EngineState, Part
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.layout import Flat
from alphadecay_dist.sharding.regions import common, read, view_of


def load(checkpoint: Checkpoint, state: EngineState, ranks: Collectives) -> None:
    """Put a checkpoint into an engine; collective. Each rank reads what it needs and nothing else.

    With as many ranks as wrote it, each rank also gets its random generators back.

    Raises:
        UserError: it is another model's, or cannot be read.
    """
    with ranks.raise_on_all_ranks():
        _load_parts(checkpoint, state)
    state.publish(checkpoint.manifest.step)
    if checkpoint.manifest.world_size == ranks.world_size:
        with ranks.raise_on_all_ranks():
            _load_random(checkpoint.folder / file_of(ranks.rank))


def require_model(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse another model's checkpoint.

    Args:
        checkpoint: to be loaded.
        shapes: of the model's parameters by name.

    Raises:
        UserError: the first weight that differs.
    """
    saved = {tensor.name: tensor.shape for tensor in checkpoint.manifest.tensors if tensor.kind == WEIGHT}
    odd = sorted(saved.keys() ^ shapes.keys())
    if odd:
        raise UserError(
            f"{checkpoint.folder}: has {len(saved)} weights, the model {len(shapes)}, and {odd[0]!r} is in "
            "one alone; give the checkpoint of the same model"
        )
    for name, shape in shapes.items():
        if saved[name] != tuple(shape):
            raise UserError(
                f"{checkpoint.folder}: has {saved[name]} as the {WEIGHT} of {name}, expected {tuple(shape)}; "
                "give the checkpoint of the same model"
            )


@dataclass(frozen=True)
class StoredWhole:
    """A tensor of a checkpoint, put together from its pieces when it is read."""

    folder: Path
    entry: TensorEntry

    @property
    def shape(self) -> torch.Size:
        """Shape of the whole."""
        return torch.Size(self.entry.shape)

    def read(self) -> Tensor:
        """The tensor, fp32."""
        values, kind, name = torch.empty(self.shape.numel()), self.entry.kind, self.entry.name
        whole = Part(name, kind, self.entry.shape, Flat(0, values.numel()), values)
        fill([whole], self.folder, {(kind, name): self.entry})
        return values.view(self.shape)


def stored_weights(checkpoint: Checkpoint) -> dict[str, StoredWhole]:
    """The fp32 weights of a checkpoint by name, in the model's order."""
    return {name: kinds[WEIGHT] for name, kinds in stored_tensors(checkpoint).items()}


def stored_tensors(checkpoint: Checkpoint) -> dict[str, dict[str, StoredWhole]]:
    """The weights of a checkpoint and the optimizer's state of them: by name, then by kind."""
    found: dict[str, dict[str, StoredWhole]] = {}
    for entry in checkpoint.manifest.tensors:  # weights first, in the model's order
        found.setdefault(entry.name, {})[entry.kind] = StoredWhole(checkpoint.folder, entry)
    return found


def with_weights(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """A checkpoint read with another kind of its tensors, such as a moving average, as the weights.

    Raises:
        UserError: it has none of that kind for each weight.
    """
    tensors = checkpoint.manifest.tensors
    taken = tuple(replace(tensor, kind=WEIGHT) for tensor in tensors if tensor.kind == kind)
    if len(taken) != sum(tensor.kind == WEIGHT for tensor in tensors):
        known = ", ".join(sorted({tensor.kind for tensor in tensors}))
        raise UserError(f"--weights {kind}: {checkpoint.folder} has no such tensors; it has {known}")
    return replace(checkpoint, manifest=replace(checkpoint.manifest, tensors=taken))


def fill(parts: Iterable[Part], folder: Path, tensors: Mapping[tuple[str, str], TensorEntry]) -> None:
    """Read parts from a checkpoint's files, each of which is opened once.

    Args:
        parts: their values are overwritten.
        folder: of the checkpoint.
        tensors: what it holds, by kind and name.

    Raises:
        UserError: it does not hold all of a part, or a file cannot be read.
    """
    wanted: dict[str, list[tuple[StoredPiece, Part]]] = {}
    missing: dict[tuple[str, str], int] = {}
    for part in parts:
        entry = tensors.get((part.kind, part.name))
        if entry is None or entry.shape != part.shape:
            found = None if entry is None else entry.shape
            raise UserError(
                f"{folder}: has {found} as the {part.kind} of {part.name}, expected {part.shape}; give the "
                "checkpoint of the same model and optimizer"
            )
        missing[part.kind, part.name] = part.index.numel
        for piece in entry.pieces:
            wanted.setdefault(piece.file, []).append((piece, part))
    for file, pairs in wanted.items():
        needed = [pair for pair in pairs if next(common(pair[0].index, pair[1].index, pair[1].shape), None)]
        if needed:
            for part, numel in _read_file(folder / file, needed):
                missing[part.kind, part.name] -= numel
    for (kind, name), numel in missing.items():
        if numel:
            raise UserError(
                f"{folder}: the pieces of {kind} {name} do not cover {numel} elements; it is damaged"
            )


def _read_file(path: Path, pairs: Iterable[tuple[StoredPiece, Part]]) -> list[tuple[Part, int]]:
    """Copy what stored pieces and parts have in common; returns the number of elements by part."""
    copied = []
    try:
        with safe_open(path, framework="pt") as stored:
            for piece, part in pairs:
                values = stored.get_slice(piece.key)
                if math.prod(values.get_shape()) != piece.index.numel:
                    raise ValueError(f"{piece.key} has the shape {values.get_shape()}")
                for box in common(piece.index, part.index, part.shape):
                    found = read(values.__getitem__, box.source, box.box)
                    view_of(part.values, box.target, box.box).copy_(found)
                    copied.append((part, box.numel))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from None
    return copied


def _load_parts(checkpoint: Checkpoint, state: EngineState) -> None:
    manifest = checkpoint.manifest
    require_model(checkpoint, state.shapes)
    kinds: dict[str, list[str]] = {}
    for tensor in manifest.tensors:
        if tensor.kind != WEIGHT:
            kinds.setdefault(tensor.name, []).append(tensor.kind)
    state.create(kinds, manifest.scalars)
    fill(
        state.parts(), checkpoint.folder, {(tensor.kind, tensor.name): tensor for tensor in manifest.tensors}
    )


def _load_random(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as stored:
            keys = [key for key in stored.keys() if key.startswith(PREFIX)]  # noqa: SIM118  (no dict)
            set_random_state({key: stored.get_tensor(key) for key in keys})
    except Exception as error:  # generators raise a dozen types of error
        raise UserError(f"{path}: has no states of random generators: {error}") from None
