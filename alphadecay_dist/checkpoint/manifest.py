"""What makes a checkpoint whole: a JSON that names every file and its size, written last."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The manifest of one checkpoint.

    Attributes:
        step: optimizer updates finished.
        world_size: ranks that wrote it.
        engine: engine that wrote it, with its ZeRO stage.
        files: size in bytes by path, relative to the checkpoint.
        format: version of this layout.
    """

    step: int
    world_size: int
    engine: str
    files: dict[str, int]
    format: int = FORMAT


def write_manifest(folder: Path, step: int, world_size: int, engine: str) -> None:
    """Write the manifest of a complete folder: every file is on disk before the manifest is."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            _flush(path)
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    manifest = asdict(Manifest(step, world_size, engine, files))
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest and check that every file that it names is there at its full size.

    Raises:
        ValueError: why the checkpoint is not whole.
    """
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{folder}: has no {MANIFEST}; it was not finished") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{folder}: {MANIFEST} cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise ValueError(f"{folder}: format {manifest.format}, expected {FORMAT}")
    for name, size in manifest.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise ValueError(f"{folder}: {name} has {found} bytes, expected {size}")
    return manifest


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by new text: a reader sees the old or the new whole, also after a crash."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
