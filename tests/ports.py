"""Ports for rendezvous and daemons."""

from __future__ import annotations

import os
import random
import socket

FIRST, EACH = 20_000, 3_000  # between those of SLURM's jobs and those that the system gives to connections


def worker() -> int:
    """The number of this worker of pytest-xdist, 0 to 3."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4


def free_port() -> int:
    """A TCP port that nobody listens on, of those that this worker of pytest-xdist has to itself."""
    first = FIRST + worker() * EACH
    while True:
        port = random.SystemRandom().randrange(first, first + EACH)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
