"""Find a whole checkpoint: by a path, or the newest of a run."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from alphadecay_dist.checkpoint.manifest import Manifest, OtherFormatError, read_manifest, stored_file
from alphadecay_dist.checkpoint.other_formats import holds_weights, is_deepspeed, recognised
from alphadecay_dist.checkpoint.writer import CHECKPOINTS, LATEST, STATE, STEPS
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.collectives import Collectives

LAST_OF_RUN = "it as --output_dir, without --resume, for its newest, or checkpoints/step-..."
ALTERED = "does not have the content that was written (CRC-32)"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there, at their full size."""

    folder: Path
    manifest: Manifest

    def state(self) -> dict[str, Any]:
        """What the trainer saved beside the shards."""
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))

    def faults(self, rank: int = 0, world_size: int = 1) -> list[str]:
        """What differs from what was written, in the files that this rank reads: every world_size-th."""
        found = []
        for name, stored in list(self.manifest.files.items())[rank::world_size]:
            try:
                content = stored_file(self.folder / name)
            except OSError as error:
                found.append(f"{self.folder}: {name} cannot be read: {error.strerror}")
                continue
            if content != stored:
                found.append(f"{self.folder}: {name} {ALTERED}")
        return found


class SearchResult(NamedTuple):
    """The newest checkpoint whose files are there, if there is one, and why newer ones were passed over."""

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...]


class Choice(Protocol):
    """What names a checkpoint, or none."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The chosen one; None ends the search."""


ChoiceT = TypeVar("ChoiceT", bound=Choice)


def first_whole(choose: Callable[[Mapping[Path, str]], ChoiceT], ranks: Collectives) -> ChoiceT:
    """Choose a checkpoint, again and again until the content of its files is what was written; collective.

    The ranks share the work: each reads some of the files and compares their checksums.

    Args:
        choose: makes a choice on rank 0, given the checkpoints that are damaged, and how.
        ranks: all of them see the same files.

    Returns:
        The first choice whose checkpoint is whole, or that names none; the same on every rank.
    """
    damaged: dict[Path, str] = {}
    while True:
        choice = ranks.from_main(lambda: choose(damaged))
        checkpoint = choice.checkpoint
        if checkpoint is None:
            return choice
        faults = ranks.gather(checkpoint.faults(ranks.rank, ranks.world_size))
        first = next((fault for own in faults for fault in own), None)
        if first is None:
            return choice
        damaged[checkpoint.folder] = first


def newest(root: Path, ranks: Collectives | None = None) -> Checkpoint | None:
    """The newest checkpoint in a directory whose files are whole, see :func:`first_whole`; None without one.

    Raises:
        OtherFormatError: the newest is another version's.
    """
    return first_whole(functools.partial(search, root), ranks or Collectives(None)).checkpoint


def search(root: Path, damaged: Mapping[Path, str]) -> SearchResult:
    """The checkpoint that ``latest`` names, or where that is not whole the newest whole one.

    Files are looked at by their sizes; the content of state.json alone is read.

    Args:
        root: the directory of checkpoints.
        damaged: the checkpoints that are known to be damaged, and how.

    Raises:
        OtherFormatError: the newest is another version's.
    """
    latest = root / LATEST
    name = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else None
    newest_first = sorted(root.glob(STEPS), reverse=True)
    skipped: list[str] = []
    for folder in sorted(newest_first, key=lambda folder: folder.name != name):
        if folder in damaged:
            skipped.append(damaged[folder])
            continue
        try:
            return SearchResult(_opened(folder), tuple(skipped))
        except OtherFormatError:
            raise
        except ValueError as error:
            skipped.append(str(error))
    return SearchResult(None, tuple(skipped))


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a directory, whose files are all there at their full size.

    Raises:
        UserError: it is not whole.
    """
    try:
        return _opened(folder)
    except OtherFormatError:
        raise
    except ValueError as error:
        if _is_run(folder):
            raise UserError(
                f"{folder}: is a run, expected one of its checkpoints; give {LAST_OF_RUN}"
            ) from None
        raise UserError(
            without_checkpoint(folder) or f"{error}; give the directory of a whole checkpoint"
        ) from None


def without_checkpoint(path: Path) -> str | None:
    """Why there is no run or checkpoint of this trainer at a path, and what to do; None where unknown."""
    other = recognised(path)
    if not os.path.exists(path):
        return f"{path}: no such file or directory; give the directory of a run or of a checkpoint"
    if other is not None:
        return (
            f"{path}: {other.what}, expected a run or checkpoint of this trainer; a new run can begin with "
            f"its weights: {other.remedy} to --init_from"
        )
    if holds_weights(path):
        return f"{path}: has weights but no state of a run; to begin a run with them give it to --init_from"
    return None


def find(path: Path) -> Checkpoint | None:
    """The checkpoint at a path, its files compared with their checksums; None where there is neither.

    Args:
        path: the directory of a run or of its checkpoints, of which the newest whole one is taken, or that
            of one checkpoint.

    Raises:
        UserError: a run without a whole checkpoint, or a checkpoint that is not whole.
    """
    root = next((folder for folder in (path, path / CHECKPOINTS) if os.path.isfile(folder / LATEST)), None)
    if root is None or is_deepspeed(root):
        return _intact(path) if os.path.isfile(path / STATE) else None
    checkpoint = newest(root)
    if checkpoint is None:
        raise UserError(f"{root}: found no whole checkpoint")
    return checkpoint


def _is_run(path: Path) -> bool:
    """Whether a run, or the directory of its checkpoints, is at a path."""
    latest = os.path.isfile(path / LATEST) and not is_deepspeed(path)
    return latest or os.path.isdir(path / CHECKPOINTS)


def _intact(folder: Path) -> Checkpoint:
    checkpoint = read(folder)
    faults = checkpoint.faults()
    if faults:
        raise UserError(f"{faults[0]}; give another checkpoint, or the run for its newest whole one")
    return checkpoint


def _opened(folder: Path) -> Checkpoint:
    """A checkpoint whose state is as it was written: it is read before the shards are compared."""
    manifest = read_manifest(folder)
    if STATE not in manifest.files or stored_file(folder / STATE) != manifest.files[STATE]:
        raise ValueError(f"{folder}: {STATE} {ALTERED}")
    return Checkpoint(folder, manifest)
