"""A rank ends with its launcher, so that none writes beside a run that takes its place. Linux alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
DEEPSPEED = "deepspeed.launcher.launch"  # starts the ranks of a node; itself started by `deepspeed`


def end_with_launcher() -> None:
    """Let the kernel kill this rank when the process that launched it ends.

    Not without a launcher: a run that a shell put into the background is to outlive the shell.
    """
    if sys.platform != "linux" or "LOCAL_RANK" not in os.environ:
        return
    launcher = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def stop_with_parent() -> None:
    """In a program that is about to begin: SIGTERM, on which runs save, when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Launcher:
    """The ``deepspeed`` command above a rank's own launcher: ended by a signal, it tells nobody."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._runner = _parent_of(self._parent) if DEEPSPEED in _command(self._parent) else None

    def gone(self) -> bool:
        """Whether the command has ended and its ranks go on."""
        return self._runner is not None and _parent_of(self._parent) != self._runner


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parent_of(process: int) -> int | None:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return int(fields.rpartition(")")[2].split()[1])
    except OSError:
        return None
