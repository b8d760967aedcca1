"""The files of a run's output directory: JSON lines, status and config."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphadecay_dist.condition.sample import CONDITION
from alphadecay_dist.control.refresh import DECAY, SPECTRA
from alphadecay_dist.errors import UserError
from alphadecay_dist.files import write_atomically
from alphadecay_dist.json_fields import count, counted, get

METRICS, EVAL, SEQUENCES = "metrics.jsonl", "eval.jsonl", "sequences.jsonl"
EVENTS = "events.jsonl"  # starts, resumes, ends: of all that happened, whatever is done again
STATUS = "status.json"


class RunFiles:
    """The files of one output directory; only rank 0 has this object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._status = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Add a line before the next update begins; a number that is not finite becomes null."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def event(self, event: str, step: int, reason: str | None = None) -> None:
        """Add what happened to the run, and when (seconds since 1970), to events.jsonl."""
        record = {"step": step, "event": event, "time": round(time.time(), 3), "reason": reason}
        self.append(EVENTS, record)

    def count(self, name: str) -> int:
        """How many lines a file has."""
        path = self.folder / name
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def keep_until(self, step: int, evaluated: int | None = None) -> None:
        """Drop the lines written after a checkpoint: those updates are done again.

        Args:
            step: of the checkpoint; a refresh or a sample at it comes after the checkpoint.
            evaluated: step of the last evaluation before the checkpoint; ``step`` unless given.
        """
        for name, last in (
            (METRICS, step),
            (EVAL, step if evaluated is None else evaluated),
            (SEQUENCES, step),
            (DECAY, step - 1),
            (CONDITION, step - 1),
            (SPECTRA, step - 1),
            (EVENTS, math.inf),  # a last line that was cut short alone
        ):
            path = self.folder / name
            if path.is_file():
                lines = [line for line in read_lines(path) if line.get("written_at", line["step"]) <= last]
                write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    def status(self, state: str, step: int, exit_code: int | None = None, reason: str | None = None) -> None:
        """Replace status.json: running, preempted, finished or failed; from any thread."""
        record = {"state": state, "step": step, "exit_code": exit_code, "reason": reason}
        if self._status.acquire(timeout=2):  # a disk that hangs must not keep a rank from ending
            try:
                _replace(self.folder / STATUS, json.dumps(record) + "\n")
            finally:
                self._status.release()

    def text(self, name: str, text: str) -> None:
        """Replace a text file."""
        write_atomically(self.folder / name, text)


def _replace(path: Path, text: str) -> None:
    """Replace a small file; on a full disk it is written over the old one, whose space it has."""
    try:
        write_atomically(path, text)
    except OSError:
        if not path.is_file():
            raise
        with path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, each with its ``step``; a last line that was cut short is left out.

    Raises:
        UserError: a line is not such a record.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            count(record, "step")
            counted(record.get("written_at", 0), "written_at")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not a record: {error}; remove it") from None
        records.append(record)
    return records


def read_status(folder: Path) -> dict[str, Any] | None:
    """The status.json of a run; None where it is missing or cannot be read."""
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        get(status, "state", str)
        count(status, "step")
    except (OSError, ValueError, RecursionError):
        return None
    return status


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
