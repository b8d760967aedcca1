"""How a run begins in its output directory: anew, from a checkpoint, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.checkpoint.manifest import MANIFEST
from alphadecay_dist.checkpoint.reader import Checkpoint, read, search
from alphadecay_dist.checkpoint.writer import CHECKPOINTS
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import GROUPS
from alphadecay_dist.training.config import flat
from alphadecay_dist.training.inputs import INPUTS
from alphadecay_dist.training.outputs.run_files import DECAY, EVAL, METRICS, SEQUENCES, STATUS, read_status
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.state import saved_state
from alphadecay_dist.training.tasks.registry import task_named

# What a resume may not change, beside what the task says: the rest of the run would not follow from the part
# that is done.
FIXED = (
    "train.global_batch",
    "train.dtype",
    "train.seed",
    "optimizer.name",
    "decay.apply",  # the layout of the param groups
)


@dataclass(frozen=True)
class Start:
    """Where to begin.

    Attributes:
        checkpoint: what to go on from; None begins at the initial weights.
        clear: remove the old run's files first.
        finished: the run is done; its status, to be told.
        skipped: why newer checkpoints were passed over.
    """

    checkpoint: Checkpoint | None = None
    clear: bool = False
    finished: Mapping[str, Any] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Updates finished before the beginning."""
        return self.checkpoint.manifest.step if self.checkpoint else 0

    @property
    def evaluated(self) -> int:
        """Up to which update evaluations were made; a run that was asked to stop may owe the last one."""
        owed = self.checkpoint is not None and saved_state(self.checkpoint).evaluation_owed
        return self.step - 1 if owed else self.step


def choose_start(folder: Path, config: Config, resume: str, overwrite: bool, ranks: Ranks) -> Start:
    """How to begin, from a checkpoint whose files all ranks have looked at together. Collective.

    Raises:
        UserError: see :func:`decide_start`.
    """
    damaged: dict[Path, str] = {}
    while True:
        start = ranks.from_main(lambda: decide_start(folder, config, resume, overwrite, damaged))
        if start.checkpoint is None:
            return start
        fault = _first_fault(start.checkpoint, ranks)
        if fault is None:
            return start
        damaged[start.checkpoint.folder] = fault


def newest_whole(root: Path, ranks: Ranks) -> Checkpoint | None:
    """The newest checkpoint whose files all ranks have found whole; None without one. Collective."""
    damaged: dict[Path, str] = {}
    while True:
        checkpoint = ranks.from_main(lambda: search(root, damaged)[0])
        fault = _first_fault(checkpoint, ranks) if checkpoint else None
        if checkpoint is None or fault is None:
            return checkpoint
        damaged[checkpoint.folder] = fault


def _first_fault(checkpoint: Checkpoint, ranks: Ranks) -> str | None:
    """What is wrong with the files of a checkpoint, of which each rank looks at some. Collective."""
    faults = ranks.gather(checkpoint.faults(ranks.rank, ranks.world_size))
    return next((fault for own in faults for fault in own), None)


def decide_start(
    folder: Path, config: Config, resume: str, overwrite: bool, damaged: Mapping[Path, str]
) -> Start:
    """Decide how to begin, reading but not changing the directory.

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
        occupied = (folder / STATUS).is_file() or (folder / CHECKPOINTS).is_dir()
        if occupied and not overwrite:
            raise UserError(
                f"--resume none: {folder} already holds a run; add --overwrite to remove it, "
                "or choose another --output_dir"
            )
        return Start(clear=occupied)
    if resume == "auto":
        checkpoint, skipped = search(folder / CHECKPOINTS, damaged)
    else:
        checkpoint, skipped = _named(resume, damaged), ()
        _not_into_another_run(folder, checkpoint)
    if checkpoint is None:
        _nothing_to_lose(folder, skipped)
        return Start(clear=(folder / STATUS).is_file(), skipped=skipped)
    _same_recipe(checkpoint, config)
    status = read_status(folder)
    if checkpoint.manifest.step >= config.train.steps and status and status["state"] == "finished":
        return Start(finished=status)
    return Start(checkpoint, skipped=skipped)


def clear(folder: Path, files: Iterable[str]) -> None:
    """Remove a run's own files, its task's ``files`` among them; what else lies in the directory stays.

    The status goes last: while it is there a start that finds no checkpoint clears the rest.
    """
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (
        "config.yaml",
        METRICS,
        EVAL,
        DECAY,
        SEQUENCES,
        *files,
        INPUTS,
        "wandb_id",
        STATUS,
    ):
        (folder / name).unlink(missing_ok=True)


def _nothing_to_lose(folder: Path, skipped: tuple[str, ...]) -> None:
    """Checkpoints that were whole once are not removed unasked, damaged as they are."""
    if any((folder / CHECKPOINTS).glob(f"*/{MANIFEST}")):
        raise UserError(
            f"{folder}: no checkpoint is whole any more ({'; '.join(skipped)}); bring one back, or begin "
            "anew with --resume none and --overwrite or another --output_dir"
        )


def _named(resume: str, damaged: Mapping[Path, str]) -> Checkpoint:
    if Path(resume) in damaged:
        raise UserError(f"--resume: {damaged[Path(resume)]}; give the directory of a whole checkpoint")
    try:
        return read(Path(resume))
    except UserError as error:
        raise UserError(f"--resume: {error}") from None


def _not_into_another_run(folder: Path, checkpoint: Checkpoint) -> None:
    if (folder / STATUS).is_file() and checkpoint.folder.resolve().parents[1] != folder.resolve():
        raise UserError(
            f"--resume {checkpoint.folder}: {folder} already holds another run; choose another --output_dir"
        )


def _same_recipe(checkpoint: Checkpoint, config: Config) -> None:
    state = saved_state(checkpoint)
    saved, now = dict(flat(state.config)), dict(flat(config))
    task = task_named(config.model.task)
    # Of what names files the content counts, where the checkpoint keeps it: see changes.py.
    named = task.paths if state.inputs is None else ()
    # With one group for all tuned weights, one policy keeps the decay in it and the other elsewhere.
    policy = () if now["decay.apply"] == GROUPS else ("decay.policy",)
    for key in ("model.task", *named, *task.fixed, *FIXED, *policy):
        if _place_free(saved[key]) != _place_free(now[key]):
            raise UserError(
                f"{key}: found {now[key]!r}, the run in {checkpoint.folder} was begun with {saved[key]!r}; "
                "give it the same value, or start anew with --resume none and another --output_dir"
            )


def _place_free(value: Any) -> Any:
    """A path's last part, so that a run may move to another machine; other values as they are."""
    return Path(value).name if isinstance(value, str) else value
