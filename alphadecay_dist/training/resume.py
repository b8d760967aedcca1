"""How a run starts in its output directory: from the beginning, from a checkpoint, or not at all."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint.manifest import MANIFEST
from alphadecay_dist.checkpoint.reader import Checkpoint, first_whole, read, search
from alphadecay_dist.checkpoint.writer import CHECKPOINTS
from alphadecay_dist.condition.sample import CONDITION
from alphadecay_dist.decay.choices import GROUPS
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import flat
from alphadecay_dist.training.inputs import INPUTS
from alphadecay_dist.training.outputs import csv_run, tensorboard_run
from alphadecay_dist.training.outputs.run_files import (
    DECAY,
    EVAL,
    EVENTS,
    METRICS,
    SEQUENCES,
    SPECTRA,
    STATUS,
    read_status,
)
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import SavedRun, saved_run
from alphadecay_dist.training.tasks.registry import task_named

# What a resume may not change, besides what the task says: the rest of the run would not follow from its
# first part.
FIXED = (
    "train.global_batch",
    "train.dtype",
    "train.seed",
    "optimizer.name",
    "optimizer.muon_modules",
    "decay.apply",  # the layout of the param groups, as
    "decay.follow",
)


@dataclass(frozen=True)
class RunStart:
    """How a run starts.

    Attributes:
        saved: the checkpoint to go on from, and its state; None starts from the initial weights.
        clear: remove the old run's files first.
        finished: the status of a run that is finished; None for any other.
        skipped: why newer checkpoints were passed over.
    """

    saved: SavedRun | None = None
    clear: bool = False
    finished: Mapping[str, Any] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from."""
        return self.saved.checkpoint if self.saved else None

    @property
    def step(self) -> int:
        """Updates finished before the start."""
        return self.saved.checkpoint.manifest.step if self.saved else 0

    @property
    def evaluated(self) -> int:
        """Evaluations were made up to this update; a run that was stopped may owe its last one."""
        return self.step - 1 if self.saved and self.saved.state.evaluation_owed else self.step


def choose_start(folder: Path, config: Config, resume: str, overwrite: bool, ranks: Ranks) -> RunStart:
    """How to start, with a checkpoint whose files all ranks have checked together; collective.

    Raises:
        UserError: see :func:`decide_start`.
    """
    return first_whole(functools.partial(decide_start, folder, config, resume, overwrite), ranks)


def decide_start(
    folder: Path, config: Config, resume: str, overwrite: bool, damaged: Mapping[Path, str]
) -> RunStart:
    """Decide how to start, reading but not changing the directory.

    Args:
        folder: the output directory.
        config: the resolved recipe.
        resume: ``auto``, ``none`` or the directory of a checkpoint.
        overwrite: with ``none``, remove a run that is there.
        damaged: checkpoints whose content is not what was written, and how.

    Raises:
        UserError: ``none`` on a directory with a run, a checkpoint of another recipe or format, or the
            checkpoint that was named is damaged.
    """
    if resume == "none":
        return _from_the_beginning(folder, overwrite)
    if resume != "auto":
        return _from_checkpoint(folder, config, _named(folder, resume, damaged))
    checkpoint, skipped = search(folder / CHECKPOINTS, damaged)
    if checkpoint is not None:
        return _from_checkpoint(folder, config, checkpoint, skipped)
    _require_nothing_to_lose(folder, skipped)
    return RunStart(clear=(folder / STATUS).is_file(), skipped=skipped)


def clear(folder: Path, files: Iterable[str]) -> None:
    """Remove a run's own files, its task's ``files`` among them; other files in the directory stay.

    The status goes last: while it is there, a start that finds no checkpoint clears the rest.
    """
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for events in (folder / tensorboard_run.FOLDER).glob(tensorboard_run.EVENTS):
        events.unlink()
    lines = (METRICS, EVAL, DECAY, SPECTRA, CONDITION, SEQUENCES, EVENTS)
    own = ("config.yaml", *lines, *csv_run.NAMES, *files, INPUTS, "wandb_id")
    for name in (*own, STATUS):
        with suppress(NotADirectoryError):
            (folder / name).unlink(missing_ok=True)


def _from_the_beginning(folder: Path, overwrite: bool) -> RunStart:
    occupied = (folder / STATUS).is_file() or (folder / CHECKPOINTS).is_dir()
    if occupied and not overwrite:
        raise UserError(
            f"--resume none: {folder} already holds a run; add --overwrite to remove it, "
            "or choose another --output_dir"
        )
    return RunStart(clear=occupied)


def _from_checkpoint(
    folder: Path, config: Config, checkpoint: Checkpoint, skipped: tuple[str, ...] = ()
) -> RunStart:
    saved = saved_run(checkpoint)
    _require_same_recipe(saved, config)
    status = read_status(folder)
    if checkpoint.manifest.step >= config.train.steps and status and status["state"] == "finished":
        return RunStart(finished=status)
    return RunStart(saved, skipped=skipped)


def _require_nothing_to_lose(folder: Path, skipped: tuple[str, ...]) -> None:
    """Refuse to remove checkpoints that were whole once, damaged as they are, without being asked to."""
    if any((folder / CHECKPOINTS).glob(f"*/{MANIFEST}")):
        raise UserError(
            f"{folder}: no checkpoint is whole any more ({'; '.join(skipped)}); restore one, or start a new "
            "run with --resume none and --overwrite or another --output_dir"
        )


def _named(folder: Path, resume: str, damaged: Mapping[Path, str]) -> Checkpoint:
    """The checkpoint that --resume names, which may not go on in another run's directory."""
    if Path(resume) in damaged:
        raise UserError(f"--resume: {damaged[Path(resume)]}; give the directory of a whole checkpoint")
    try:
        checkpoint = read(Path(resume))
    except UserError as error:
        raise UserError(f"--resume: {error}") from None
    if (folder / STATUS).is_file() and checkpoint.folder.resolve().parents[1] != folder.resolve():
        raise UserError(
            f"--resume {checkpoint.folder}: {folder} already holds another run; choose another --output_dir"
        )
    return checkpoint


def _require_same_recipe(saved: SavedRun, config: Config) -> None:
    before, now = dict(flat(saved.state.config)), dict(flat(config))
    task = task_named(config.model.task)
    # Where a field names files and the checkpoint keeps their fingerprints, changes.py compares those.
    named = task.paths if saved.state.inputs is None else ()
    # With one group for all tuned weights, one policy keeps the decay in it and the other elsewhere.
    policy = () if now["decay.apply"] == GROUPS else ("decay.policy",)
    for key in ("model.task", *named, *task.fixed, *FIXED, *policy):
        if _place_free(before[key]) != _place_free(now[key]):
            raise UserError(
                f"{key}: found {now[key]!r}, the run in {saved.checkpoint.folder} was begun with "
                f"{before[key]!r}; give it the same value, or start a new run with --resume none and another "
                "--output_dir"
            )


def _place_free(value: Any) -> Any:
    """Of a path its last part, so that a run may move to another machine; other values as they are."""
    return Path(value).name if isinstance(value, str) else value
