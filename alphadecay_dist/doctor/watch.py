"""No check hangs: ranks report their progress in the store, and a thread ends those that wait too long."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar, cast

import torch.distributed as dist

from alphadecay_dist.doctor.findings import Place
from alphadecay_dist.doctor.roll_call import part, spans
from alphadecay_dist.training.process.exit_codes import USER_ERROR

T = TypeVar("T")
TICK = 0.5
TOLD = 5  # faults that are reported: the first ones cause the others
FAULTS, OVER = "faults", "over"


class Watch:
    """A time limit for all checks, and the place where a failing check is reported.

    Rank 0's thread reports which ranks are late or have failed, and ends rank 0. The other ranks' threads
    then end their ranks.

    Args:
        store: shared by all ranks; the thread uses its own connection.
        places: the places of all ranks.
        rank: this rank.
        seconds: time limit for all checks.
        hints: possible causes, printed if a check fails.
    """

    def __init__(
        self, store: dist.TCPStore, places: Sequence[Place], rank: int, seconds: float, hints: Sequence[str]
    ) -> None:
        self._store, self._places, self._rank, self._seconds = store, places, rank, seconds
        self._hints = hints
        self._number = 0
        self._done = threading.Event()
        beside = cast(Any, store).clone()  # torch documents it, and leaves it out of its stubs
        self._thread = threading.Thread(target=self._watch, args=(beside,), daemon=True)
        self._thread.start()

    def step(self, what: str, work: Callable[[], T]) -> T:
        """Run a check; if it fails on any rank, all ranks end."""
        try:
            self._store.set(f"at/{self._rank}", f"{self._number:03} {what}")
            self._number += 1
            return work()
        except Exception as error:
            self._fail(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def stop(self) -> None:
        """The checks are done."""
        self._done.set()
        self._thread.join()

    def _fail(self, text: str) -> NoReturn:
        """Report the fault and wait until the thread ends this rank; without a store, end at once."""
        try:
            order = self._store.add(FAULTS, 1)
            self._store.set(f"fault/{order}", f"{self._rank} {text}")
        except dist.DistError:
            _end(f"{self._who([self._rank])}: {text}")
        time.sleep(10)
        _end(f"{self._who([self._rank])}: {text}")

    def _watch(self, store: dist.Store) -> None:
        until = time.monotonic() + self._seconds
        try:
            if self._rank == 0:
                self._watch_others(store, until)
            else:
                self._watch_main(store, until + 10)
        except dist.DistError:
            if not self._done.is_set():
                _end(f"{self._who([self._rank])}: rank 0 is gone")

    def _watch_others(self, store: dist.Store, until: float) -> None:
        while not self._done.wait(TICK):
            if store.add(FAULTS, 0):
                gone = self._gone(store)  # takes a while, in which others fail of the same, or of this
                self._end_all(store, gone + self._faults(store))
            elif time.monotonic() > until:
                late = self._late(store)
                self._end_all(store, [*self._gone(store), late])

    def _watch_main(self, store: dist.Store, until: float) -> None:
        while not self._done.wait(TICK):
            store.add(f"beat/{self._rank}", 1)
            if store.check([OVER]):
                part(store, self._rank, len(self._places))
                _end()
            elif time.monotonic() > until:
                _end(f"{self._who([self._rank])}: rank 0 does not answer")

    def _gone(self, store: dist.Store) -> list[str]:
        """Report ranks whose threads send no heartbeat: a rank that died cannot report itself."""
        others = [place.rank for place in self._places if place.rank != 0]
        before = [store.add(f"beat/{rank}", 0) for rank in others]
        time.sleep(6 * TICK)
        gone = [
            rank for rank, beat in zip(others, before, strict=True) if store.add(f"beat/{rank}", 0) == beat
        ]
        return [f"{self._who(gone)}: ended or hangs altogether; look at its log"] if gone else []

    def _end_all(self, store: dist.Store, lines: Sequence[str]) -> None:
        for line in [*lines, *self._hints]:
            print(f"alphadecay doctor: error: {line}", file=sys.stderr, flush=True)
        store.set(OVER, "1")
        part(store, self._rank, len(self._places))
        _end()

    def _faults(self, store: dist.Store) -> list[str]:
        """The faults in the order of their arrival; equal faults share one line."""
        ranks_of: dict[str, list[int]] = {}
        for order in range(1, store.add(FAULTS, 0) + 1):
            rank, _, text = store.get(f"fault/{order}").decode().partition(" ")
            ranks_of.setdefault(text, []).append(int(rank))
        lines = [f"{self._who(ranks)}: {text}" for text, ranks in ranks_of.items()]
        more = [f"and {len(lines) - TOLD} more"] if len(lines) > TOLD else []
        return lines[:TOLD] + more

    def _late(self, store: dist.Store) -> str:
        """The message about ranks that are behind the others."""
        keys = [f"at/{place.rank}" for place in self._places]
        at = [store.get(key).decode() if store.check([key]) else "000 the first check" for key in keys]
        first = min(at)
        late = [rank for rank, stage in enumerate(at) if stage == first]
        who = "all ranks" if len(late) == len(at) else self._who(late)
        return (
            f"not done within {self._seconds:g} s: {who} at {first[4:]!r}; "
            "look at that node, or allow more time by --timeout"
        )

    def _who(self, ranks: Sequence[int]) -> str:
        nodes = list(dict.fromkeys(self._places[rank].node for rank in ranks))
        return f"{'rank' if len(ranks) == 1 else 'ranks'} {spans(ranks)} on {', '.join(nodes)}"


def _end(line: str | None = None) -> NoReturn:
    """End the process, even if its main thread waits for others."""
    if line:
        print(f"alphadecay doctor: error: {line}", file=sys.stderr, flush=True)
    os._exit(USER_ERROR)
