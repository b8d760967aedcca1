"""Run a function on N gloo ranks, forked from a process that has torch and deepspeed loaded."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preload"])


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 300) -> list[Any]:
    """Call ``function(*args)`` on every rank of a fresh process group.

    Args:
        function: a module's own function; inside it torch.distributed is initialised.
        world_size: number of ranks, each with a fair share of the cores.
        args: picklable arguments, the same for all ranks.
        timeout: seconds, after which all ranks are killed.

    Returns:
        The picklable results by rank.

    Raises:
        AssertionError: a rank raised, died or hung; with the tracebacks of all that raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with started(Path(folder), function, world_size, *args) as ranks:
                return _collect(ranks, time.monotonic() + timeout)
        except AssertionError as error:
            printed = (Path(folder) / "output.0").read_text(errors="replace")
            raise AssertionError(f"{error}\nrank 0 printed:\n{printed[-4000:]}") from None


@dataclass
class Rank:
    """A forked rank.

    Attributes:
        process: which exits with 0 when it has told its outcome; killed, with the signal's number below 0.
        reader: gives that outcome.
    """

    process: Any
    reader: Connection

    @functools.cached_property
    def outcome(self) -> tuple[bool, Any]:
        """Whether the function returned, and what; else the traceback, or how the process died. It waits."""
        try:
            return pickle.loads(self.reader.recv_bytes())
        except EOFError:
            self.process.join(5)
            return False, f"died with exit code {self.process.exitcode}"


@contextlib.contextmanager
def started(folder: Path, function: Callable[..., Any], world_size: int, *args: Any) -> Iterator[list[Rank]]:
    """Ranks that call ``function(*args)``, for a test that plays their launcher; none is left at the end.

    Args:
        folder: an empty one, for the rendezvous and for what they print: ``output.0`` and so on.
        function: see :func:`run_ranks`.
        world_size: number of ranks.
        args: of the function.
    """
    ranks = []
    try:
        for rank in range(world_size):
            reader, writer = FORKS.Pipe(duplex=False)
            process = FORKS.Process(
                target=_rank_main, args=(writer, folder, rank, world_size, function, args)
            )
            process.start()
            writer.close()
            ranks.append(Rank(process, reader))
        yield ranks
    finally:
        for own in ranks:
            own.process.kill()
            own.process.join()
            own.reader.close()


def _collect(ranks: list[Rank], deadline: float) -> list[Any]:
    outcomes: dict[int, Any] = {}
    open_readers = {own.reader: rank for rank, own in enumerate(ranks)}
    failed_at = None
    while open_readers:
        # Once a rank has failed the others may hang in a collective: they get 5 s to report as well.
        limit = deadline if failed_at is None else min(deadline, failed_at + 5)
        ready = wait(list(open_readers), timeout=max(0.0, limit - time.monotonic()))
        if not ready:
            break
        for reader in ready:
            rank = open_readers.pop(reader)
            outcomes[rank] = ranks[rank].outcome
            if not outcomes[rank][0]:
                failed_at = failed_at or time.monotonic()
    faults = [f"rank {rank}: {text}" for rank, (fine, text) in sorted(outcomes.items()) if not fine]
    faults += [f"rank {rank}: no answer" for rank in open_readers.values()]
    assert not faults, "\n".join(faults)
    return [outcomes[rank][1] for rank in range(len(ranks))]


def _rank_main(
    writer: Connection, folder: Path, rank: int, world_size: int, function: Callable[..., Any], args: Any
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        OMP_NUM_THREADS=str(max(1, len(os.sched_getaffinity(0)) // world_size)),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    output = os.open(folder / f"output.{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=120),
        )
        outcome = (True, function(*args))
    except BaseException:
        outcome = (False, traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    writer.send_bytes(pickle.dumps(outcome))
    if outcome[0] and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    writer.close()
    os._exit(0)  # gloo threads can abort an orderly exit
