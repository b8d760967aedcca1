"""What the launcher's variables say of this rank, and its share of the host's cores."""

from __future__ import annotations

import os

import torch

from alphadecay_dist.engines.rank_variables import local_size


def environment(name: str, default: int) -> int:
    """A launcher's variable, such as RANK or WORLD_SIZE."""
    return int(os.environ.get(name, str(default)))


def limit_threads() -> None:
    """Take a fair share of the cores, unless OMP_NUM_THREADS says otherwise; before the first tensor.

    Left alone, every rank of a node takes all cores (two ranks on two cores ran 8 times slower).
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // max(1, local_size()))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
