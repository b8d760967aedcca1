"""Save a checkpoint so that nothing half-written is ever named by ``latest``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint.manifest import write_atomically, write_manifest

LATEST = "latest"
STATE = "state.json"


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies: ``step-00000100``."""
    return root / f"step-{step:08d}"


def save(
    root: Path,
    step: int,
    *,
    write_shards: Callable[[Path], None],
    state: dict[str, Any],
    engine: str,
    rank: int,
    world_size: int,
    barrier: Callable[[], None],
) -> Path:
    """Save one checkpoint; collective.

    All ranks write their shards into a new directory; when all are done rank 0 writes the state and then
    the manifest, which makes it whole, and only then ``latest``, by an atomic rename.

    Args:
        root: the directory of checkpoints, on a file system that all ranks share.
        step: optimizer updates finished.
        write_shards: writes this rank's shards below the folder that it gets.
        state: what else a resume needs, as plain data.
        engine: name of what wrote the shards.
        rank: this rank; rank 0 writes all but shards.
        world_size: number of ranks.
        barrier: waits for all ranks.

    Returns:
        The checkpoint's directory.
    """
    folder = step_folder(root, step)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed save left
        folder.mkdir(parents=True)
    barrier()
    write_shards(folder)
    barrier()
    if rank == 0:
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        write_manifest(folder, step, world_size, engine)
        name_latest(folder)
    barrier()
    return folder


def name_latest(folder: Path) -> None:
    """Let ``latest`` name a whole checkpoint, by an atomic rename."""
    write_atomically(folder.parent / LATEST, folder.name + "\n")
