"""Whether all ranks see one output directory, can write to it, and can lock each other out by flock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from alphadecay_dist.doctor.findings import Folder
from alphadecay_dist.doctor.measures import free_bytes
from alphadecay_dist.sharding.collectives import Collectives

PATIENCE = 10.0  # seconds that a network file system may take to show a new file
TOKEN = ".alphadecay-doctor"


def look_at(folder: Path, needed: int, ranks: Collectives) -> Folder:
    """Write one file per rank and look for those of others; all files are removed again. Collective.

    Args:
        folder: the output directory; if rank 0 does not have it yet, its nearest existing parent is used.
        needed: see :class:`alphadecay_dist.doctor.findings.Folder`.
        ranks: all ranks.
    """
    steps, name = ranks.from_main(lambda: (_steps_up(folder), f"{TOKEN}-{uuid.uuid4().hex}"))
    here = (folder.absolute(), *folder.absolute().parents)[steps]
    token = here / f"{name}-{ranks.rank}"
    with contextlib.ExitStack() as until_all_looked:
        until_all_looked.callback(_remove, token)
        fault, locked = _written(token), None
        if ranks.is_main and fault is None:
            descriptor = os.open(token, os.O_RDWR)
            until_all_looked.callback(os.close, descriptor)
            locked = _taken(descriptor)
        writes = [other is None for other in ranks.gather(fault)]
        shared = _seen_by_each_other(here, name, writes, ranks)
        if shared and writes[0] and not ranks.is_main:
            locked = _not_kept_out(here / f"{name}-0")
        ranks.barrier()
    return Folder(str(here), fault, shared, locked, free_bytes(here), needed)


def _steps_up(folder: Path) -> int:
    """How many levels above the directory its nearest existing parent is; 0 if it exists."""
    above = (folder.absolute(), *folder.absolute().parents)
    return next(number for number, path in enumerate(above) if path.is_dir())


def _written(token: Path) -> str | None:
    try:
        token.write_bytes(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def _remove(token: Path) -> None:
    with contextlib.suppress(OSError):
        token.unlink()


def _taken(descriptor: int) -> str | None:
    """Take the lock, until the descriptor is closed. Returns why that failed, or None."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _not_kept_out(token: Path) -> str | None:
    """Why rank 0's lock does not exclude this rank; None if it does."""
    try:
        with token.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    return "a file that rank 0 holds could be locked"


def _seen_by_each_other(here: Path, name: str, writes: list[bool], ranks: Collectives) -> bool:
    """Whether rank 0 and this rank see each other's files, if they could be written."""
    wanted = range(ranks.world_size) if ranks.is_main else [0]
    unseen = ranks.gather(_unseen(here, {f"{name}-{rank}": rank for rank in wanted if writes[rank]}))
    return ranks.rank not in unseen[0] and 0 not in unseen[ranks.rank]


def _unseen(here: Path, wanted: dict[str, int]) -> Collection[int]:
    """The ranks whose files do not become visible in time."""
    until = time.monotonic() + PATIENCE
    while True:
        missing = wanted.keys() - _names(here)
        if not missing or time.monotonic() > until:
            return [wanted[name] for name in missing]
        time.sleep(0.2)


def _names(here: Path) -> set[str]:
    try:
        return set(os.listdir(here))
    except OSError:
        return set()
