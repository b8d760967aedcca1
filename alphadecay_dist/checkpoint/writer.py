"""Save a checkpoint so that nothing half-written is ever named by ``latest``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError

from alphadecay_dist.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    flush,
    read_manifest,
    stored_file,
    to_text,
    write_atomically,
)
from alphadecay_dist.checkpoint.random_state import random_state
from alphadecay_dist.checkpoint.shards import SHARDS, Shard, joined, write_shard
from alphadecay_dist.engines.state import EngineState
from alphadecay_dist.errors import UserError

T = TypeVar("T")

LATEST = "latest"
STATE = "state.json"
STEPS = "step-*"


class Ranks(Protocol):
    """The ranks that save or load together."""

    rank: int
    world_size: int

    def gather(self, value: T) -> list[T]:
        """Plain data of every rank, by rank."""
        ...

    def together(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; if it fails on one, all raise."""
        ...

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 alone and give its result to all; if it fails, all raise."""
        ...


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies: ``step-00000100``."""
    return root / f"step-{step:08d}"


def save(
    root: Path,
    step: int,
    *,
    engine_state: EngineState,
    layout: str,
    state: dict[str, Any],
    ranks: Ranks,
    keep: int,
) -> Path:
    """Save one checkpoint; collective.

    All ranks write their files into a new directory; when all are on disk rank 0 writes the state and then
    the manifest, which makes it whole, and only then ``latest``, by an atomic rename.

    Args:
        root: the directory of checkpoints, on a file system that all ranks share.
        step: optimizer updates finished.
        engine_state: weights and optimizer, as the engine shows them.
        layout: name of the engine.
        state: what else a resume needs, as plain data.
        ranks: all that hold a part.
        keep: whole checkpoints to keep, this one among them; 0 keeps all.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: it cannot be written; what there was of it is removed, and other checkpoints are untouched.
    """
    folder = step_folder(root, step)
    with _removed_on_failure(folder, ranks):
        ranks.from_main(lambda: _told(folder, lambda: _make(folder)))
        parts = engine_state.parts()
        shard = ranks.together(
            lambda: _told(folder, lambda: write_shard(folder, ranks.rank, parts, random_state()))
        )
        shards = ranks.gather(shard)
        ranks.from_main(
            lambda: _told(folder, lambda: _complete(folder, step, shards, engine_state, layout, state))
        )
    ranks.from_main(lambda: _prune(folder, keep))
    return folder


def name_latest(folder: Path) -> None:
    """Let ``latest`` name a whole checkpoint, by an atomic rename."""
    write_atomically(folder.parent / LATEST, folder.name + "\n")


def _make(folder: Path) -> None:
    """A new directory; what a killed save left there goes."""
    _remove(folder)
    (folder / SHARDS).mkdir(parents=True)


def _complete(
    folder: Path,
    step: int,
    shards: Sequence[Shard],
    engine_state: EngineState,
    layout: str,
    state: dict[str, Any],
) -> None:
    """Make a directory with all ranks' files a whole checkpoint."""
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    flush(folder / STATE)
    files = {shard.file: shard.stored for shard in shards} | {STATE: stored_file(folder / STATE)}
    manifest = Manifest(
        step=step,
        world_size=len(shards),
        engine=layout,
        versions=_versions(),
        files=files,
        scalars=engine_state.scalars(),
        tensors=joined(shards, list(engine_state.shapes)),
    )
    flush(folder / SHARDS)
    write_atomically(folder / MANIFEST, to_text(manifest))
    flush(folder.parent)
    name_latest(folder)


def _prune(newest: Path, keep: int) -> None:
    """Remove what is older than the newest whole checkpoints; later steps are another branch's, and stay."""
    older = sorted((f for f in newest.parent.glob(STEPS) if f.name < newest.name), reverse=True)
    kept = 1
    for folder in older if keep else ():
        if kept < keep and _is_whole(folder):
            kept += 1
        else:
            _remove(folder)


def _is_whole(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except ValueError:
        return False
    return True


def _remove(folder: Path) -> None:
    """Remove a checkpoint; its manifest goes first, so that half of it is never taken for whole."""
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _removed_on_failure(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Remove what is not whole; where a rank died while rank 0 wrote the manifest, all of it is there."""
    try:
        yield
    except Exception:
        if ranks.rank == 0 and not _is_whole(folder):
            _remove(folder)
        raise


def _told(folder: Path, work: Callable[[], T]) -> T:
    """Do some work; a file system that refuses it is the user's to mend."""
    try:
        return work()
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{folder}: the checkpoint cannot be written: {reason}; mend that and start again: older "
            "checkpoints are as they were"
        ) from None


def _versions() -> dict[str, str]:
    found = {}
    for package in ("alphadecay-dist", "torch", "deepspeed", "safetensors"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
