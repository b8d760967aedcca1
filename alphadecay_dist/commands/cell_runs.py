"""The cells of a table in turn on this machine; asked to stop, the cell in work saves, and the rest waits."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from alphadecay_dist.commands.cells import Cell
from alphadecay_dist.training.outputs.run_files import read_status
from alphadecay_dist.training.process.exit_codes import FAILURE, PREEMPTED
from alphadecay_dist.training.process.launcher import stop_with_parent
from alphadecay_dist.training.process.preemption import SIGNALS

ENDED = ("finished", "preempted")  # preempted: by us, by train.stop_after, by a deadline
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def run_cells(cells: Mapping[int, Cell], ranks: int) -> int:
    """Train what is not finished, a cell after the other.

    A cell that fails is said, and the others go on. A signal to stop (SIGTERM, SIGINT, SIGUSR2) reaches the
    cell in work as SIGTERM; it saves, and no other begins. The same call goes on from there.

    Args:
        cells: by number.
        ranks: processes of each cell; more than one are started by torchrun.

    Returns:
        0: all are finished. 75: stopped, to be started again. 1: a cell failed.
    """
    failed = stopped = 0
    with _Runner() as runner:
        for place, (number, cell) in enumerate(cells.items(), 1):
            if runner.asked:
                break
            if _state(cell) == "finished":
                continue
            wrong = cell.mistake()
            if wrong is None:
                _say(f"cell {number} ({place} of {len(cells)}): {cell.name}")
                code = runner.run([*trainer(ranks), *cell.arguments()])
                wrong = None if _state(cell) in ENDED else _failure(cell, code)
            if wrong is not None and not runner.asked:
                failed += 1
                _say(f"cell {number} failed: {cell.name}: {wrong}")
            elif _state(cell) != "finished":
                stopped += 1
                _say(f"cell {number} stopped: {cell.name}")
    if runner.asked:
        _say(f"stopped early: {runner.asked}; the same command goes on")
        return PREEMPTED
    return FAILURE if failed else PREEMPTED if stopped else 0


def trainer(ranks: int) -> list[str]:
    """The command that starts the trainer as so many ranks; its options follow."""
    launcher = [] if ranks == 1 else [*TORCHRUN, f"--nproc_per_node={ranks}"]
    return [sys.executable, *launcher, "-m", "alphadecay_dist", "train"]


class _Runner:
    """Runs programs, and gives them the signals of this process.

    Attributes:
        asked: the name of the first signal; empty before.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Runner:
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Run a program to its end; returns its exit code.

        It is in a session of its own: a terminal's Ctrl-C reaches it through this process alone, and once.
        """
        self._child = subprocess.Popen(  # no other thread runs here, which preexec_fn could meet
            command,
            start_new_session=True,
            preexec_fn=stop_with_parent,  # noqa: PLW1509
        )
        if self.asked:  # since the caller looked
            self._child.terminate()
        code = self._child.wait()
        self._child = None
        return code

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = self.asked or signal.Signals(number).name
        if self._child is not None:
            self._child.terminate()


def _state(cell: Cell) -> str | None:
    status = read_status(cell.folder)
    return None if status is None else status["state"]


def _failure(cell: Cell, code: int) -> str:
    """Why a run neither is finished nor was stopped."""
    reason = (read_status(cell.folder) or {}).get("reason")
    return f"exit code {code}" + (f", {reason}" if reason else "; see above")


def _say(line: str) -> None:
    print(f"alphadecay table: {line}", flush=True)
