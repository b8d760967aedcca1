"""Which rank this process is, by the variables of its launcher: torch's own, or those of MPI and PMI."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alphadecay_dist.errors import LaunchError, UserError

FIRST_PORT, PORTS = 10000, 20000  # below those that Linux gives to clients
LOOPBACK = "127.0.0.1"
ACROSS_NODES = "29500"  # torch's own default


@dataclass(frozen=True)
class Family:
    """The names that an MPI launcher's variables have; of several, the first one that is set counts."""

    name: str
    rank: str
    size: str
    local_rank: Sequence[str]
    local_size: Sequence[str]


FAMILIES = (
    Family(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Family(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    Family(
        "PMI",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
)


def settle_rank() -> None:
    """Check torch's variables (RANK, WORLD_SIZE ...), or set them from those of MPI or PMI.

    Without any of them nothing is set: this is the only process.

    Raises:
        LaunchError: a variable of this rank alone is wrong, or its number is not known.
        UserError: a variable is missing on all ranks, or this is one of several tasks without a number.
    """
    joined = sys.modules.get("torch.distributed")  # if it is not loaded, no rank has joined
    if joined is not None and joined.is_initialized():  # settled before the ranks joined
        return
    family = next((family for family in FAMILIES if family.rank in os.environ), None)
    if "RANK" not in os.environ and family is not None:
        _adopt(family)
    if "RANK" in os.environ:
        _check()
    else:
        _check_alone()


def local_size() -> int:
    """Ranks on this node, as the launcher says; 1 where it does not."""
    return _number("LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in os.environ else "LOCAL_SIZE", 1)


def _check() -> None:
    """Check torch's variables."""
    rank = _number("RANK", 0)
    _require("WORLD_SIZE", "the number of ranks")
    world_size = _number("WORLD_SIZE", 1)
    if rank >= world_size:
        raise LaunchError(
            f"RANK: found {rank} with WORLD_SIZE {world_size}, expected 0 to {world_size - 1}; give every "
            "process a number of its own"
        )
    local_rank, local_ranks = _number("LOCAL_RANK", 0), local_size()
    if local_rank >= max(local_ranks, 1) and {"LOCAL_WORLD_SIZE", "LOCAL_SIZE"} & set(os.environ):
        raise LaunchError(
            f"LOCAL_RANK: found {local_rank} with {local_ranks} ranks on the node (LOCAL_WORLD_SIZE), "
            f"expected 0 to {local_ranks - 1}; count the ranks of each node from 0"
        )
    _require("MASTER_ADDR", "the host of rank 0")
    _require("MASTER_PORT", "a free port there, the same on every rank")
    if _number("MASTER_PORT", 0) > 65535:
        raise LaunchError(f"MASTER_PORT: found {os.environ['MASTER_PORT']}, expected a port, 1 to 65535")


def _check_alone() -> None:
    """Refuse a process that would train a separate run next to others of the same job."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        raise UserError(
            f"RANK: not set in one of {tasks} tasks of a SLURM step, expected RANK, LOCAL_RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT; export them in each task, as slurm/rank.sh does"
        )
    if _number("WORLD_SIZE", 1) == 0:
        raise LaunchError("WORLD_SIZE: found 0, expected the number of ranks; unset it for one process")
    if _number("WORLD_SIZE", 1) > 1:
        raise LaunchError(
            f"RANK: not set with WORLD_SIZE {os.environ['WORLD_SIZE']}, expected this process's number; "
            "start the ranks by torchrun, deepspeed or mpirun, or unset WORLD_SIZE for one process"
        )


def _adopt(family: Family) -> None:
    """Set those of torch's variables that are not set, unless one process was started alone."""
    if family.size not in os.environ:
        raise LaunchError(
            f"{family.size}: not set with {family.rank}, expected the number of ranks; export it"
        )
    rank, size = _number(family.rank, 0), _number(family.size, 1)
    if size == 1:
        return
    local_rank, local_ranks = (_first(names) for names in (family.local_rank, family.local_size))
    # Whoever says nothing of nodes has one; a local number that differs from the rank's says otherwise.
    one_node = local_ranks == size if local_ranks is not None else local_rank in (None, rank)
    given = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local_rank if local_rank is not None else rank if one_node else None,
        "LOCAL_WORLD_SIZE": local_ranks if local_ranks is not None else size if one_node else None,
        "MASTER_ADDR": LOOPBACK if one_node else None,
    }
    at_home = one_node and "MASTER_ADDR" not in os.environ
    given["MASTER_PORT"] = _port_of(_launcher(family.rank)) if at_home else ACROSS_NODES
    for name, value in given.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
    if "MASTER_ADDR" not in os.environ:
        known_to_all = UserError if local_ranks is not None else LaunchError
        raise known_to_all(
            f"MASTER_ADDR: not set with {family.name}'s ranks on several nodes, expected the host of rank 0; "
            "export it to all ranks, as in mpirun -x MASTER_ADDR=HOST"
        )


def _launcher(variable: str) -> int:
    """The process that started the ranks of this node: the nearest one above that is no rank itself.

    A shell that wraps a rank has the rank's variables; the launcher has not.
    """
    process = os.getppid()
    while True:
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes()
            above = int(
                Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
            )
        except (OSError, ValueError, IndexError):  # not Linux, or another user's process
            return process
        if (
            not any(entry.startswith(f"{variable}=".encode()) for entry in environment.split(b"\0"))
            or above < 1
        ):
            return process
        process = above


def _port_of(process: int) -> int:
    """A port that all ranks of one launcher derive alike."""
    return FIRST_PORT + process % PORTS


def _first(names: Sequence[str]) -> int | None:
    """The number in the first of the variables that is set."""
    return next((_number(name, 0) for name in names if name in os.environ), None)


def _require(name: str, what: str) -> None:
    if not os.environ.get(name):
        raise UserError(
            f"{name}: not set with RANK {os.environ['RANK']}, expected {what}; start the ranks by torchrun, "
            "deepspeed or mpirun, or unset RANK for one process"
        )


def _number(name: str, default: int) -> int:
    """A variable that counts."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise LaunchError(f"{name}: found {text!r}, expected a number from 0 on; correct it, or unset it")
    return int(text)
