"""How the trainer's ranks meet, on every engine."""

from __future__ import annotations

import os
import socket
import warnings

import torch
import torch.distributed as dist


def local_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join(device: torch.device) -> bool:
    """Join the process group: NCCL on GPUs, gloo on CPUs; alone where no launcher set the variables.

    Returns:
        Whether it had to be made: whoever made it is to end it.
    """
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {key: str(value) for key, value in alone.items()}
        os.environ["MASTER_PORT"] = str(_free_port())
    # FSDP2 and DeepSpeed still call collectives by their old names.
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
