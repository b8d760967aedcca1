"""A launcher of forked ranks that may also kill them: as real ones do, it ends all when one has died."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from tests.multirank import Rank

LIMIT = 300.0  # seconds for a start of a tiny run
FORCED = "by SIGKILL"


@dataclass(frozen=True)
class Moment:
    """A kill by time.

    Attributes:
        rank: that dies.
        everyone: all die.
        seconds: after the start, or after the run's first update where that is still to come.
    """

    rank: int
    everyone: bool
    seconds: float

    def __str__(self) -> str:
        return f"after {self.seconds:.2f} s: {'all ranks' if self.everyone else f'rank {self.rank}'}"


@dataclass(frozen=True)
class Ended:
    """How a start ended.

    Attributes:
        struck: the ranks that the moment was meant for were alive then, and were killed.
        others: how the ranks ended when one had failed: by themselves, or by SIGTERM so long after it, or by
            SIGKILL; empty where none failed.
        codes: exit codes of the processes.
        outcomes: of the ranks.
    """

    struck: bool
    others: str
    codes: list[int]
    outcomes: list[tuple[bool, object]]

    @property
    def fine(self) -> bool:
        """All ranks returned 0."""
        return all(outcome == (True, 0) for outcome in self.outcomes)


def launched(
    ranks: Sequence[Rank], moment: Moment | None, begun: Callable[[], bool], patience: float
) -> Ended:
    """Wait for the end of all ranks.

    Args:
        ranks: which were started just now.
        moment: when to kill; None to leave them alone.
        begun: whether the run has made its first update.
        patience: seconds for the others to end by themselves once one has failed, before SIGTERM.
    """
    end = time.monotonic() + LIMIT
    struck = moment is not None and _strike(ranks, moment, begun, end)
    failed = _one_failed(ranks, end)
    others = _end_all(ranks, patience) if failed else ""
    outcomes = [rank.outcome for rank in ranks]
    return Ended(struck, others, [rank.process.exitcode for rank in ranks], outcomes)


def _strike(ranks: Sequence[Rank], moment: Moment, begun: Callable[[], bool], end: float) -> bool:
    ends = [rank.process.sentinel for rank in ranks]
    while not begun() and not wait(ends, 0.05) and time.monotonic() < end:
        pass
    if wait(ends, moment.seconds):
        return False
    victims = list(ranks) if moment.everyone else [ranks[moment.rank]]
    for rank in victims:
        rank.process.kill()
    for rank in victims:
        rank.process.join()
    return all(rank.process.exitcode == -9 for rank in victims)


def _one_failed(ranks: Sequence[Rank], end: float) -> bool:
    """Wait until a rank has failed, or all have ended well."""
    left = {rank.process.sentinel: rank for rank in ranks}
    while left:
        ready = wait(list(left), max(0.0, end - time.monotonic()))
        if not ready:
            return True  # it hangs
        for sentinel in ready:
            if left.pop(sentinel).outcome != (True, 0):
                return True
    return False


def _end_all(ranks: Sequence[Rank], patience: float) -> str:
    if _ended(ranks, patience):
        return "by themselves"
    for rank in ranks:
        rank.process.terminate()
    if _ended(ranks, 15):
        return f"by SIGTERM after {patience:.0f} s"
    for rank in ranks:
        rank.process.kill()
    assert _ended(ranks, 15)
    return FORCED


def _ended(ranks: Sequence[Rank], seconds: float) -> bool:
    end = time.monotonic() + seconds
    for rank in ranks:
        rank.process.join(max(0.0, end - time.monotonic()))
    return all(rank.process.exitcode is not None for rank in ranks)


def holders(folder: Path) -> set[int]:
    """Processes that have a file of a directory open, what they print to included; not this one."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:  # it has ended, or closed it
            continue
        if Path(target).is_relative_to(folder):
            found.add(int(link.parts[2]))
    return found - {os.getpid()}
