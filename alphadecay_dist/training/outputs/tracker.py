"""What follows a run's numbers beside its own files: wandb, TensorBoard, tables for spreadsheets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from alphadecay_dist.condition.numbers import medians_by_type
from alphadecay_dist.condition.sample import CONDITION
from alphadecay_dist.control.module_types import means_in_line
from alphadecay_dist.control.refresh import DECAY
from alphadecay_dist.training.outputs.run_files import EVAL, METRICS, read_lines

Record = Mapping[str, Any]  # numbers by name; None, or a number that is not finite, is undefined
# Kinds of records, and the files that hold them first.
KINDS = {"metrics": METRICS, "eval": EVAL, "decay": DECAY, "condition": CONDITION}
# What they get of those that are long.
SHORT: dict[str, Callable[[Record], dict[str, float]]] = {
    "decay": means_in_line,
    "condition": medians_by_type,
}


class Tracker(Protocol):
    """Where records go, each once; what it raises is a warning to the run, which goes on without it."""

    def log(self, kind: str, step: int, record: Record) -> None:
        """Take a record, which the run's own file already holds.

        Args:
            kind: ``metrics`` (of an update), ``eval``, ``decay``: a refresh's means by module type, or
                ``condition``: a sample's medians.
            step: counts updates.
            record: without ``step``.
        """

    def go_back(self, step: int) -> None:
        """Forget the records after a checkpoint; the run's own files have done so."""

    def close(self, exit_code: int) -> None:
        """The run ends."""


def tagged(kind: str, record: Record) -> dict[str, Any]:
    """A record's values under their names where all kinds are together, without those that are None."""
    prefix = "eval/" if kind == "eval" else ""
    return {f"{prefix}{key}": value for key, value in record.items() if value is not None}


def history(folder: Path, every: int, first: int = 0) -> Iterator[tuple[str, int, Record]]:
    """Kind, step and record of what a run's own files hold, kind by kind.

    Args:
        folder: the output directory.
        every: updates between those whose metrics are wanted.
        first: the step from which on records are wanted.
    """
    for kind, name in KINDS.items():
        for line in read_lines(folder / name) if (folder / name).is_file() else []:
            step = line.pop("step")
            if step >= first and (kind != "metrics" or step % every == 0):
                yield kind, step, SHORT[kind](line) if kind in SHORT else line
