"""Save a checkpoint so that nothing half-written is ever named by ``latest``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from alphadecay_dist.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
    stored_file,
    to_text,
)
from alphadecay_dist.checkpoint.random_state import random_state
from alphadecay_dist.checkpoint.shards import SHARDS, Shard, joined, write_shard
from alphadecay_dist.engines.state import EngineState, Part, Scalars
from alphadecay_dist.errors import RunError
from alphadecay_dist.files import flush, write_atomically
from alphadecay_dist.sharding.collectives import Collectives

T = TypeVar("T")

CHECKPOINTS = "checkpoints"  # the folder of a run that holds them
LATEST = "latest"
STATE = "state.json"
STEPS = "step-*"


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
    ranks: Collectives,
    keep: int,
) -> Path:
    """Save one checkpoint; collective.

    All ranks write their files into a new directory. Once all are on disk, rank 0 writes the state, then the
    manifest, which makes the checkpoint whole, and then ``latest``, by an atomic rename.

    Args:
        root: the directory of checkpoints, on a file system that all ranks share.
        step: optimizer updates finished.
        engine_state: weights and optimizer, as the engine shows them.
        layout: name of the engine.
        state: what else a resume needs, as plain data.
        ranks: all ranks that hold a part.
        keep: number of whole checkpoints to keep, this one included; 0 keeps all.

    Returns:
        The checkpoint's directory.

    Raises:
        RunError: it cannot be written; its directory is removed, other checkpoints are untouched.
    """
    parts, states = engine_state.parts(), random_state()
    saving = begin(root, step, engine_state=engine_state, layout=layout, state=state, ranks=ranks)
    return saving.complete(lambda: saving.write(parts, states), keep)


def begin(
    root: Path,
    step: int,
    *,
    engine_state: EngineState,
    layout: str,
    state: dict[str, Any],
    ranks: Collectives,
) -> Saving:
    """Make a new directory for a checkpoint, to be filled and completed; collective. As :func:`save`."""
    folder = step_folder(root, step)
    with _removed_on_failure(folder, ranks):
        ranks.from_main(lambda: _make(folder))
    common = _Common(step, layout, json.dumps(state), engine_state.scalars(), list(engine_state.shapes))
    return Saving(folder, common, ranks)


@dataclass(frozen=True)
class _Common:
    """What a checkpoint holds besides the ranks' tensors; ``state`` is JSON."""

    step: int
    layout: str
    state: str
    scalars: Scalars
    names: list[str]


@dataclass(frozen=True)
class Saving:
    """A checkpoint that is being saved."""

    folder: Path
    common: _Common
    ranks: Collectives

    def write(self, parts: Iterable[Part], states: Mapping[str, Tensor]) -> Shard:
        """Write this rank's file, in any thread.

        Args:
            parts: of weights and optimizer.
            states: of this rank's random generators.
        """
        return write_shard(self.folder, self.ranks.rank, parts, states)

    def complete(self, shard: Callable[[], Shard], keep: int) -> Path:
        """Make it whole, once all ranks have their files on disk; collective. As :func:`save`.

        Args:
            shard: returns what this rank wrote, or raises the error that kept it from writing.
            keep: number of whole checkpoints to keep; 0 keeps all.
        """
        with _removed_on_failure(self.folder, self.ranks):
            with self.ranks.raise_on_all_ranks(), _write_errors_reported(self.folder):
                own = shard()
            shards = self.ranks.gather(own)
            self.ranks.from_main(lambda: _complete(self.folder, shards, self.common))
        self.ranks.from_main(lambda: _prune(self.folder, keep))
        return self.folder


def name_latest(folder: Path) -> None:
    """Make ``latest`` name a whole checkpoint, by an atomic rename."""
    write_atomically(folder.parent / LATEST, folder.name + "\n")


def _make(folder: Path) -> None:
    """Make a new directory; what a killed save left there is removed."""
    with _write_errors_reported(folder):
        _remove(folder)
        (folder / SHARDS).mkdir(parents=True)


def _complete(folder: Path, shards: Sequence[Shard], common: _Common) -> None:
    """Make a directory with all ranks' files a whole checkpoint."""
    with _write_errors_reported(folder):
        (folder / STATE).write_text(common.state, encoding="utf-8")
        flush(folder / STATE)
        manifest = Manifest(
            step=common.step,
            world_size=len(shards),
            engine=common.layout,
            versions=_versions(),
            files={**{shard.file: shard.stored for shard in shards}, STATE: stored_file(folder / STATE)},
            scalars=common.scalars,
            tensors=joined(shards, common.names),
        )
        flush(folder / SHARDS)
        write_atomically(folder / MANIFEST, to_text(manifest))
        flush(folder.parent)
        name_latest(folder)


def _prune(newest: Path, keep: int) -> None:
    """Remove checkpoints older than the newest whole ones; later steps, another branch's, stay."""
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
    """Remove a checkpoint, its manifest first: what is left half-way is not whole."""
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _removed_on_failure(folder: Path, ranks: Collectives) -> Iterator[None]:
    """Remove a checkpoint that failed, unless it is whole: a rank may die after the manifest is written."""
    try:
        yield
    except Exception:
        if ranks.is_main and not _is_whole(folder):
            _remove(folder)
        raise


@contextmanager
def _write_errors_reported(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one line that ends the run."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(
            f"{folder}: the checkpoint cannot be written: {reason}; fix that and start again: older "
            "checkpoints are as they were"
        ) from None


def _versions() -> dict[str, str]:
    found = {}
    for package in ("alphadecay-dist", "torch", "deepspeed", "safetensors"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
