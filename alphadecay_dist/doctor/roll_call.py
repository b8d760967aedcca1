"""The roll call: ranks put their places in a store before they join, so missing ranks can be named."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch.distributed as dist

from alphadecay_dist.doctor.findings import Place
from alphadecay_dist.errors import LaunchError, UserError

LINGER = 3.0  # seconds for which rank 0 keeps the store open for others
ROLL = "roll"
COMPLETE = ""
TICK = 0.2


def call_roll(store: dist.Store, mine: Place, world_size: int, seconds: float) -> list[Place]:
    """Wait until all ranks have reported their places.

    Args:
        store: shared by all ranks.
        mine: this rank's place.
        world_size: number of ranks.
        seconds: how long rank 0 waits.

    Returns:
        All places by rank.

    Raises:
        UserError: some ranks did not come; the message names them and is equal on all that did.
    """
    keys = [f"here/{rank}" for rank in range(world_size)]
    store.set(keys[mine.rank], json.dumps(asdict(mine)))
    faults = _closed(store, keys, world_size, seconds) if mine.rank == 0 else _heard(store, mine, seconds)
    if faults:
        raise UserError(faults)
    return [Place(**json.loads(place)) for place in store.multi_get(keys)]


def part(store: dist.Store, rank: int, world_size: int) -> None:
    """Leave the store; rank 0, which may serve it, waits a little for ranks that still read."""
    until = time.monotonic() + LINGER
    with contextlib.suppress(dist.DistError):  # rank 0 has left
        left = store.add("left", 1)
        while rank == 0 and left < world_size and time.monotonic() < until:
            time.sleep(TICK)
            left = store.add("left", 0)


def missing(
    absent: Sequence[int], places: Sequence[Place], world_size: int, nodes: Sequence[str], seconds: float
) -> str:
    """The message about ranks that did not come.

    Args:
        absent: their numbers.
        places: the places of those that came.
        world_size: number of ranks.
        nodes: all nodes of the job; empty if unknown.
        seconds: how long rank 0 waited for them.
    """
    known = {place.rank // place.local_ranks: place.node for place in places}
    local_ranks = places[0].local_ranks
    hosts = {known[rank // local_ranks] for rank in absent if rank // local_ranks in known}
    silent = [node for node in nodes if node not in {place.node for place in places}]
    where = [f"on {', '.join(sorted(hosts))}, where other ranks came"] if hosts else []
    where += [f"no rank came from {', '.join(silent)}"] if silent else []
    return (
        f"{len(absent)} of {world_size} ranks did not come within {seconds:g} s: {spans(absent)}"
        f"{''.join(f'; {text}' for text in where)}; look at these ranks' logs, and whether their nodes reach "
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    )


def nodes_of_job() -> list[str]:
    """The nodes of the SLURM job; empty without SLURM."""
    given = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if not given:
        return []
    try:
        command = ["scontrol", "show", "hostnames", given]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def spans(ranks: Sequence[int]) -> str:
    """Rank numbers as ranges: ``0-3, 7``."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _closed(store: dist.Store, keys: Sequence[str], world_size: int, seconds: float) -> str:
    """Wait as rank 0, and tell all ranks which did not come; empty if all came."""
    faults = COMPLETE
    if not _come(store, keys, seconds):
        there = [store.check([key]) for key in keys]
        places = [Place(**json.loads(store.get(key))) for key, came in zip(keys, there, strict=True) if came]
        absent = [rank for rank, came in enumerate(there) if not came]
        faults = missing(absent, places, world_size, nodes_of_job(), seconds)
    store.set(ROLL, faults)
    return faults


def _heard(store: dist.Store, mine: Place, seconds: float) -> str:
    """What rank 0 reported."""
    try:
        if _come(store, [ROLL], seconds + 30):
            return store.get(ROLL).decode()
    except dist.DistError:  # it has ended
        pass
    raise LaunchError(f"rank {mine.rank} on {mine.node}: rank 0 did not end the roll call; look at its log")


def _come(store: dist.Store, keys: Sequence[str], seconds: float) -> bool:
    """Whether all keys come in time; polled, because a wait that times out fills the log with traces."""
    until = time.monotonic() + seconds
    while not store.check(list(keys)):
        if time.monotonic() > until:
            return False
        time.sleep(TICK)
    return True
