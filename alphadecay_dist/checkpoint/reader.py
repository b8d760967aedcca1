"""Find the checkpoint to go on from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint.manifest import Manifest, read_manifest
from alphadecay_dist.checkpoint.writer import LATEST, STATE
from alphadecay_dist.errors import UserError


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, and why newer ones beside it were passed over."""

    folder: Path
    manifest: Manifest
    skipped: tuple[str, ...] = ()

    def state(self) -> dict[str, Any]:
        """What the trainer saved beside the shards."""
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))


def newest(root: Path) -> Checkpoint | None:
    """The checkpoint that ``latest`` names, or where that is not whole the newest whole one.

    Returns:
        None where no checkpoint is whole.
    """
    latest = root / LATEST
    named = [root / latest.read_text(encoding="utf-8").strip()] if latest.is_file() else []
    others = sorted(root.glob("step-*"), reverse=True)
    skipped: list[str] = []
    for folder in [*named, *(folder for folder in others if folder not in named)]:
        try:
            return Checkpoint(folder, read_manifest(folder), tuple(skipped))
        except ValueError as error:
            skipped.append(str(error))
    return None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a directory.

    Raises:
        UserError: it is not whole.
    """
    try:
        return Checkpoint(folder, read_manifest(folder))
    except ValueError as error:
        raise UserError(f"{error}; give the directory of a whole checkpoint") from None
