"""How the trainer's ranks meet, on every engine."""

from __future__ import annotations

import os
import socket
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from alphadecay_dist.errors import UserError


def local_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def open_store(timeout: timedelta) -> dist.TCPStore:
    """The store in which the launcher's ranks find each other; it waits for its host, and for nobody else.

    Rank 0 is the host, or torchrun's agent. Without a launcher it is this process's own.

    Raises:
        OSError: the host did not answer within ``timeout``.
        UserError: this is one of several tasks of SLURM, and no launcher's.
    """
    _alone_without_launcher()
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    is_host = os.environ["RANK"] == "0" and not agents
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not is_host:
        _wait_for(host, port, timeout)
    return dist.TCPStore(
        host,
        port,
        int(os.environ["WORLD_SIZE"]),
        is_master=is_host,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )


def join(device: torch.device, store: dist.Store | None = None, timeout: timedelta | None = None) -> bool:
    """Join the process group: NCCL on GPUs, gloo on CPUs; alone where no launcher set the variables.

    Args:
        device: this rank's.
        store: where the ranks have met already; None lets them meet.
        timeout: of every collective; None is torch's own.

    Returns:
        Whether it had to be made: whoever made it is to end it.

    Raises:
        UserError: this is one of several tasks of SLURM, and no launcher's.
    """
    _alone_without_launcher()
    # FSDP2 and DeepSpeed still call collectives by their old names.
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if store is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
    return True


def _alone_without_launcher() -> None:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" not in os.environ and tasks != "1":  # each would train a run of its own
        raise UserError(
            f"RANK: not set in one of {tasks} tasks of a SLURM step, expected RANK, LOCAL_RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT; export them in each task, as slurm/rank.sh does"
        )
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {key: str(value) for key, value in alone.items()}
        os.environ["MASTER_PORT"] = str(_free_port())


def _wait_for(host: str, port: int, timeout: timedelta) -> None:
    """Wait until somebody listens there; the store would fill the log with traces of its own tries."""
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
