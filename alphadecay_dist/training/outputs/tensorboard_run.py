"""A run's numbers for TensorBoard, in the folder ``tensorboard`` of the output directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphadecay_dist.control.refresh import DECAY
from alphadecay_dist.training.outputs.run_files import read_lines
from alphadecay_dist.training.outputs.tracker import Record, history, tagged

FOLDER, EVENTS = "tensorboard", "events.out.tfevents.*"


class TensorBoardRun:
    """Event files: a new one each start, which tells TensorBoard from which step on the older ones are void.

    Args:
        folder: the output directory.
        every: updates between points of the metrics.
        step: updates that were made before.
    """

    def __init__(self, folder: Path, every: int, step: int) -> None:
        self._folder = folder
        self._every = every
        self._writer = self._started(step)

    def log(self, kind: str, step: int, record: Record) -> None:
        """See :meth:`.tracker.Tracker.log`; on disk at once, so that a run that is killed has no gap."""
        _add(self._writer, kind, step, record)
        self._writer.flush()

    def go_back(self, step: int) -> None:
        """See :meth:`.tracker.Tracker.go_back`."""
        self._writer.close()
        self._writer = self._started(step)

    def close(self, exit_code: int) -> None:
        """Close the file."""
        self._writer.close()

    def _started(self, step: int) -> Any:
        """A writer whose file begins with what it made void and the run kept."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (an extra, and slow to load)

        folder = self._folder / FOLDER
        begun = any(folder.glob(EVENTS))
        first = self._first_void(step) if begun else 0
        writer = SummaryWriter(str(folder), purge_step=first if begun else None)
        for kind, at, record in history(self._folder, self._every, first):
            _add(writer, kind, at, record)
        writer.flush()
        return writer

    def _first_void(self, step: int) -> int:
        """The first step of a record that may have been dropped.

        TensorBoard drops all kinds of records from one step on, while a checkpoint comes after its update's
        metrics and before its refresh. A refresh that lags is older than the updates that it was found in.
        """
        path = self._folder / DECAY
        kept = [line["step"] for line in read_lines(path)] if path.is_file() else []
        return min(step, max(kept, default=-1) + 1)


def _add(writer: Any, kind: str, step: int, record: Record) -> None:
    for tag, value in tagged(kind, record).items():
        writer.add_scalar(tag, value, step)
