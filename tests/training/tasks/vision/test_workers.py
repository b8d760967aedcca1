"""The processes that read images, where the process that they read for dies early."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from alphadecay_dist.training.tasks.vision import workers
from tests.multirank import FORKS
from tests.resilience.launchers import wait_until

pytestmark = pytest.mark.kills


class Numbers(workers.Jobs):
    def job(self, number):
        return number


def _reading(pids):
    """Read with one process, which kills this one as soon as it is there, and begins its work after that."""
    parent = os.getpid()

    def orphaned():
        pids.send(os.getpid())
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(0.01)

    workers.PARENT_LOOKED_FOR = 0.1
    os.register_at_fork(after_in_child=orphaned)
    workers.Results(Numbers(), range(9), 1)


def _runs(pid):
    """Whether it does; one that has ended may wait long until somebody asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_none_stays_where_its_trainer_was_killed_as_it_began():
    receiver, sender = FORKS.Pipe(duplex=False)
    trainer = FORKS.Process(target=_reading, args=(sender,))
    trainer.start()
    reader = receiver.recv()
    trainer.join(30)
    assert trainer.exitcode == -signal.SIGKILL
    try:
        wait_until(lambda: not _runs(reader), 30)
    finally:
        if _runs(reader):
            os.kill(reader, signal.SIGKILL)
