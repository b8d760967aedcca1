"""What the benchmarks on several ranks share: a rank among the others, and a DeepSpeed engine there."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

SKIPPED = "skipped: no deepspeed"


def lacks_deepspeed(row: str) -> bool:
    """Whether a row, by its name, is one of DeepSpeed's, which is not installed."""
    return row.lower().startswith("zero") and importlib.util.find_spec("deepspeed") is None


def outcome(row: str, work: Callable[[], str]) -> str:
    """What a row of a table shows: what ``work`` returns, or in a line why it has nothing to show."""
    if lacks_deepspeed(row):
        return f"{row}: {SKIPPED}"
    try:
        return work()
    except Exception as error:  # one row that fails does not end the others
        return f"{row}: failed: {reason(error)}"


def reason(error: Exception) -> str:
    """The last line of an error, which of a rank's traceback is what was raised there."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def joined(rank: int, ranks: int, folder: str, device: str, timeout: int = 600) -> Iterator[None]:
    """One rank's process, in a group over gloo or NCCL with a store in ``folder``, and quiet."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    if device == "cuda":
        torch.cuda.set_device(rank)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )
    yield
    dist.barrier()
    dist.destroy_process_group()


def deepspeed_engine(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: str, bf16: bool, **zero: Any
) -> Any:
    """A DeepSpeed engine around an optimizer of torch; ``zero`` is its section zero_optimization."""
    import deepspeed  # noqa: PLC0415

    if device == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
    deepspeed.init_distributed(dist.get_backend(), verbose=False)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
