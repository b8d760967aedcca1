"""`alphadecay doctor` on forked ranks, which meet as a launcher's do; some of them are spoiled."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.multirank import FORKS
from tests.ports import free_port

Spoil = Callable[[], None]


@dataclass(frozen=True)
class Done:
    """What ranks left: exit codes by rank, what each printed, and the JSON of all findings, if any."""

    codes: dict[int, int | None]
    printed: dict[int, str]
    found: dict[str, Any] | None
    seconds: float

    def problems(self) -> list[tuple[str, list[str], list[int]]]:
        """What is wrong, with nodes and ranks."""
        assert self.found is not None, self.printed
        return [(problem["what"], problem["nodes"], problem["ranks"]) for problem in self.found["problems"]]


def doctor(
    folder: Path,
    world_size: int,
    *options: str,
    spoils: Mapping[int, Spoil] | None = None,
    absent: tuple[int, ...] = (),
    nodes: bool = False,
) -> Done:
    """Run it on all ranks but the absent ones.

    Args:
        folder: for the ranks' output; ``folder/run`` is the output directory.
        world_size: number of ranks.
        options: of the command.
        spoils: what to do in a rank's process before, a module's own function.
        absent: ranks that are not started.
        nodes: let each rank be a node, and a machine, of its own.
    """
    (folder / "run").mkdir(exist_ok=True)
    argv = ["doctor", "--output_dir", str(folder / "run"), "--json", str(folder / "found.json"), *options]
    port, began = free_port(), time.monotonic()
    processes = {}
    for rank in set(range(world_size)) - set(absent):
        environment = {
            "RANK": rank,
            "LOCAL_RANK": 0 if nodes else rank,
            "LOCAL_WORLD_SIZE": 1 if nodes else world_size,
            "WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "SLURMD_NODENAME": f"n{rank}" if nodes else "n0",
        }
        arguments = (environment, str(folder / f"printed.{rank}"), argv, (spoils or {}).get(rank), nodes)
        processes[rank] = FORKS.Process(target=_rank_main, args=arguments)
        processes[rank].start()
    for process in processes.values():
        process.join(max(1.0, began + 120 - time.monotonic()))
        process.kill()
        process.join()
    found = folder / "found.json"
    return Done(
        {rank: process.exitcode for rank, process in processes.items()},
        {rank: (folder / f"printed.{rank}").read_text() for rank in processes},
        json.loads(found.read_text()) if found.is_file() else None,
        time.monotonic() - began,
    )


def _rank_main(
    environment: Mapping[str, Any], output: str, argv: list[str], spoil: Spoil | None, nodes: bool
) -> None:
    from alphadecay_dist import cli
    from alphadecay_dist.doctor import measures

    os.environ.update({name: str(value) for name, value in environment.items()})
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if nodes:
        measures.machine = lambda: f"boot {environment['RANK']}"
    if spoil is not None:
        spoil()
    code = cli.main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
