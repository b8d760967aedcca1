"""How the trainer's ranks join one process group, on every engine."""

from __future__ import annotations

import os
import socket
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from alphadecay_dist.engines.rank_variables import LOOPBACK, settle_rank
from alphadecay_dist.errors import LaunchError, RunError, UserError


def local_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def open_store(timeout: timedelta) -> dist.TCPStore:
    """The store in which the launcher's ranks find each other; it waits for its host only.

    Rank 0 is the host, or torchrun's agent. Without a launcher it is this process's own.

    Raises:
        OSError: the host did not answer within ``timeout``.
        UserError: the launcher's variables are wrong, see :func:`settle_rank`.
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
        store: where the ranks have already met; None if they have yet to meet.
        timeout: of every collective; None is torch's own.

    Returns:
        Whether the group was made here: then the caller is to destroy it.

    Raises:
        UserError: the launcher's variables are wrong, or lead nowhere.
        RunError: not all ranks came in time.
    """
    _alone_without_launcher()
    # FSDP2 and DeepSpeed still call collectives by their old names.
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    if device.type == "cuda":
        _require_gpu(device)
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if store is None:
        _meet(backend, timeout)
    else:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
    return True


def _alone_without_launcher() -> None:
    """Settle which rank this is; without any launcher it is the only one."""
    settle_rank()
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": LOOPBACK}
        os.environ.update({key: str(value) for key, value in alone.items()})
        os.environ["MASTER_PORT"] = str(_free_port())


def _require_gpu(device: torch.device) -> None:
    found = torch.cuda.device_count()
    if device.index >= found:
        raise LaunchError(
            f"LOCAL_RANK: found {device.index} with {found} GPUs that this rank sees, expected 0 to "
            f"{found - 1}; start as many ranks a node as it has GPUs, and let each see all"
        )


def _meet(backend: str, timeout: timedelta | None) -> None:
    """Join by the launcher's variables; what is wrong with them is one line.

    Raises:
        UserError: no such host, or a port that is taken.
        RunError: not all ranks came in time.
    """
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR: found {host!r}, which is no host here ({error.strerror}); give rank 0's host"
        ) from None
    try:
        dist.init_process_group(backend, timeout=timeout)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):  # in torch 2.6 no DistNetworkError
            raise LaunchError(
                f"MASTER_PORT: {port} is taken on {socket.gethostname()}, expected a free port; give the "
                "launcher another one (--master_port), or export MASTER_PORT to all ranks"
            ) from None
        if isinstance(error, dist.DistNetworkError):
            raise LaunchError(
                f"rank {os.environ['RANK']} found no rank 0 at {host}:{port} ({_first_line(error)}); look at "
                "rank 0's output, and give MASTER_ADDR and MASTER_PORT alike to all ranks"
            ) from None
        if not isinstance(error, dist.DistError):
            raise
        raise RunError(
            f"not all of {os.environ['WORLD_SIZE']} ranks came to {host}:{port} ({_first_line(error)}); look "
            "at their output, and whether all have the same MASTER_ADDR and MASTER_PORT"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _wait_for(host: str, port: int, timeout: timedelta) -> None:
    """Wait until the host listens; the store's own retries would fill the log with stack traces."""
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
