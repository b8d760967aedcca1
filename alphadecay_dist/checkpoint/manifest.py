"""The manifest of a checkpoint: a JSON that names every file and every tensor's pieces, written last."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.files import is_inner_path, leads_out, size_of
from alphadecay_dist.json_fields import count, counted, get, items
from alphadecay_dist.sharding.layout import Flat, Grid

MANIFEST = "manifest.json"
FORMAT = 2  # format 1 held files of DeepSpeed and torch


class OtherFormatError(UserError):
    """A checkpoint of another version of this format."""


@dataclass(frozen=True)
class StoredFile:
    """A file's size in bytes, and the CRC-32 of its content."""

    bytes: int
    crc32: int


@dataclass(frozen=True)
class StoredPiece:
    """Where a piece of a tensor is: in which file, under which key, and its index ranges in the tensor."""

    file: str
    key: str
    index: Flat | Grid


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a checkpoint.

    Attributes:
        name: of the parameter.
        kind: ``weight``, ``exp_avg`` and what else the optimizer keeps of each element.
        shape: of the whole.
        dtype: as safetensors names it, such as ``F32``.
        pieces: together they cover it once.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[StoredPiece, ...]


@dataclass(frozen=True)
class Manifest:
    """The manifest of one checkpoint.

    Attributes:
        step: optimizer updates finished.
        world_size: ranks that wrote it.
        engine: the engine that wrote it, with its ZeRO stage.
        versions: of the packages that wrote it.
        files: by path, relative to the checkpoint.
        scalars: the optimizer's numbers, such as the step counter, by its key and by parameter.
        tensors: weights and optimizer state.
        format: version of this layout.
    """

    step: int
    world_size: int
    engine: str
    versions: dict[str, str]
    files: dict[str, StoredFile]
    scalars: dict[str, dict[str, float]]
    tensors: tuple[TensorEntry, ...]
    format: int = FORMAT


def to_text(manifest: Manifest) -> str:
    """The manifest as JSON, with a checksum of its own."""
    data = {
        "step": manifest.step,
        "world_size": manifest.world_size,
        "engine": manifest.engine,
        "versions": manifest.versions,
        "files": {name: asdict(stored) for name, stored in manifest.files.items()},
        "scalars": manifest.scalars,
        "tensors": [_tensor_data(tensor) for tensor in manifest.tensors],
        "format": manifest.format,
    }
    return json.dumps({"crc32": _checksum(data), **data})


def from_text(text: str) -> Manifest:
    """The manifest in a JSON text.

    Raises:
        OtherFormatError: another version wrote it.
        ValueError: what is wrong with it.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"is a {type(data).__name__}, expected an object")
    checksum, version = data.pop("crc32", None), data.get("format")
    if checksum != _checksum(data) and (checksum is not None or version == FORMAT):
        raise ValueError("does not have the content that was written")
    if not isinstance(version, int):
        raise ValueError(f"has {shown(version)} as format, expected {FORMAT}")
    if version != FORMAT:
        raise OtherFormatError(
            f"format {version}, expected {FORMAT}: another version of alphadecay_dist wrote it; go on with "
            "that version, or start a new run with --resume none and another --output_dir"
        )
    return _manifest(data)


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest and check that every file that it names is there at its full size.

    Raises:
        OtherFormatError: another version wrote the checkpoint.
        ValueError: why the checkpoint is not whole.
    """
    try:
        manifest = from_text((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: has no {MANIFEST}; it was not finished") from None
    except OtherFormatError as error:
        raise OtherFormatError(f"{folder}: {error}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: {MANIFEST} {error}") from None
    for name, stored in manifest.files.items():
        if leads_out(folder, name):
            raise ValueError(f"{folder}: {name} leads out of the checkpoint")
        found = size_of(folder / name)
        if found != stored.bytes:
            raise ValueError(f"{folder}: {name} has {found} bytes, expected {stored.bytes}")
    return manifest


def stored_file(path: Path) -> StoredFile:
    """Size and checksum of a file as it is."""
    size, checksum = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return StoredFile(size, checksum)


def _checksum(data: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


def _tensor_data(tensor: TensorEntry) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "kind": tensor.kind,
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "pieces": [
            {"file": piece.file, "key": piece.key, **_index_data(piece.index)} for piece in tensor.pieces
        ],
    }


def _index_data(index: Flat | Grid) -> dict[str, Any]:
    if isinstance(index, Flat):
        return {"flat": [index.start, index.stop]}
    return {"grid": [[[part.start, part.stop] for part in own] for own in index.ranges]}


def _manifest(data: Mapping[str, Any]) -> Manifest:
    files = dict(_stored_file(name, stored) for name, stored in get(data, "files", dict).items())
    numbers = get(data, "scalars", dict)
    return Manifest(
        step=count(data, "step"),
        world_size=count(data, "world_size"),
        engine=get(data, "engine", str),
        versions=dict(items(data, "versions", str)),
        files=files,
        scalars={key: dict(items(numbers, key, float)) for key in numbers},
        tensors=tuple(_tensor(entry, files) for entry in get(data, "tensors", list)),
    )


def _stored_file(name: str, data: Any) -> tuple[str, StoredFile]:
    if not is_inner_path(name):
        raise ValueError(f"names the file {shown(name)}, which is not in the checkpoint")
    return name, StoredFile(count(data, "bytes"), count(data, "crc32"))


def _tensor(data: Any, files: Mapping[str, StoredFile]) -> TensorEntry:
    name, kind = get(data, "name", str), get(data, "kind", str)
    shape = tuple(counted(size, f"{name}: shape") for size in get(data, "shape", list))
    pieces = tuple(_piece(entry, name, shape) for entry in get(data, "pieces", list))
    for piece in pieces:
        if piece.file not in files:
            raise ValueError(f"{name}: is in the file {shown(piece.file)}, which is not among the files")
    held = sum(piece.index.numel for piece in pieces)
    if held != math.prod(shape):
        raise ValueError(f"{name}: its pieces have {held} elements, expected {math.prod(shape)}")
    return TensorEntry(name, kind, shape, get(data, "dtype", str), pieces)


def _piece(data: Any, name: str, shape: tuple[int, ...]) -> StoredPiece:
    file, key = get(data, "file", str), get(data, "key", str)
    if "flat" in data:
        return StoredPiece(file, key, _range(data["flat"], math.prod(shape), name))
    grid = get(data, "grid", list)
    if len(grid) != len(shape):
        raise ValueError(f"{name}: a piece has {len(grid)} dimensions, expected {len(shape)}")
    ranges = []
    for own, size in zip(grid, shape, strict=True):
        if not isinstance(own, list):
            raise ValueError(f"{name}: a piece has {shown(own)}, expected a list of ranges")
        ranges.append(tuple(_range(part, size, name) for part in own))
    return StoredPiece(file, key, Grid(tuple(ranges)))


def _range(data: Any, size: int, name: str) -> Flat:
    if not isinstance(data, list) or len(data) != 2:
        raise ValueError(f"{name}: a piece has {shown(data)}, expected [start, stop)")
    start, stop = (counted(bound, f"{name}: a piece") for bound in data)
    if not start < stop <= size:
        raise ValueError(f"{name}: a piece has [{start}, {stop}), expected a part of [0, {size})")
    return Flat(start, stop)
