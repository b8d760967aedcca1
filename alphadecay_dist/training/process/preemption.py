"""Requests to stop a run: signals, a deadline, a launcher that is gone, a full disk; one rank's stops all.

A handler only notes the signal, and the ranks agree in each update, between micro-batches of an evaluation,
and after a save. Python runs handlers in the main thread alone, and not while that waits in a collective; so
a thread of its own reads the signals' numbers too, and ends the process when a later one insists.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphadecay_dist.errors import RunError
from alphadecay_dist.training.process.exit_codes import PREEMPTED
from alphadecay_dist.training.process.launcher import Launcher

if TYPE_CHECKING:  # requests are heard before torch is loaded
    from alphadecay_dist.training.process.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
ONE_REQUEST = 3.0  # seconds within which signals are one request: launchers send several


def end_on_signals() -> None:
    """Let a signal end this process until it listens: loading torch takes seconds, and nothing is lost."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(PREEMPTED))


class StopRequests:
    """What this process was asked, from :meth:`listen` to its end.

    Until :meth:`joined` a signal ends the process at once: there is nothing to save, nobody to agree with.
    """

    def __init__(self) -> None:
        self.on_forced_exit: Callable[[str], None] = noop
        self.failure: str | None = None
        self._reason: str | None = None
        self._deadline: tuple[float, str] | None = None
        self._began = time.monotonic() - process_age()
        self._first: float | None = None  # when the thread heard the first signal
        self._joined = False

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop; None while it does not."""
        if self._reason is None and self._deadline is not None:
            seconds, reason = self._deadline
            if time.monotonic() - self._began >= seconds:
                self._reason = reason
        return self._reason

    @property
    def waiting(self) -> bool:
        """Whether the ranks are to :meth:`agree`."""
        return self.failure is not None or self.reason is not None

    def fail(self, failure: str) -> None:
        """This rank cannot go on; the ranks are to end where they agree next."""
        self.failure = self.failure or failure

    def agree(self, ranks: Ranks) -> str | None:
        """The reasons of all ranks, equal on all; None while no rank has one. Collective.

        Raises:
            RunError: a rank cannot go on.
        """
        everyone = ranks.gather((self.failure, self.reason))
        failures = [failure for failure, _ in everyone if failure]
        if failures:
            raise RunError(failures[0])
        return ", ".join(sorted({reason for _, reason in everyone if reason})) or None

    def set_deadline(self, seconds: float, text: str) -> None:
        """Stop so many seconds after the process began; ``text`` is what was asked for."""
        self._deadline = seconds, f"checkpoint.deadline={text}"

    def joined(self) -> None:
        """From now on the ranks stop together."""
        self._joined = True

    def listen(self) -> None:
        """Take the signals; for the rest of the process, which is to end by its own exit code."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        for number in SIGNALS:
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_listen_no_more)
        arguments = (reader, writer, Launcher())
        threading.Thread(target=self._watch, args=arguments, name="stop requests", daemon=True).start()

    def _note(self, number: int, _frame: Any) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def _watch(self, reader: socket.socket, _writer: socket.socket, launcher: Launcher) -> None:
        """The thread: hear signals though the main thread waits, and look after the launcher."""
        while True:
            if select.select([reader], [], [], 1.0)[0]:
                for number in reader.recv(256):
                    if number in SIGNALS:
                        self._heard(number)
            if self._reason is None and launcher.gone():
                self._reason = "the launcher is gone"

    def _heard(self, number: int) -> None:
        self._note(number, None)
        now = time.monotonic()
        self._first = self._first or now
        if not self._joined:
            os._exit(PREEMPTED)
        if now - self._first > ONE_REQUEST:
            with contextlib.suppress(Exception):
                self.on_forced_exit(
                    f"{self._reason}, and then {signal.Signals(number).name}: stopped at once"
                )
            os._exit(PREEMPTED)


def process_age() -> float:
    """Seconds since this process began; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


def noop(_reason: str) -> None:
    """The last words of a rank that has none."""


def _listen_no_more() -> None:
    """In a forked child: its signals are not ours."""
    with contextlib.suppress(ValueError):  # not its main thread
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
