"""This rank among the others, and the trainer's scalar collectives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from alphadecay_dist.errors import UserError

T = TypeVar("T")


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
    local_ranks = environment("LOCAL_WORLD_SIZE", environment("LOCAL_SIZE", 1))
    threads = max(1, cores // local_ranks)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


class Ranks:
    """The initialised process group as the trainer uses it; every method is collective."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum(0.0)

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """Each value summed over all ranks, in fp64."""
        mine = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self._device) for v in values])
        dist.all_reduce(mine)
        return mine.tolist()

    def gather(self, value: T) -> list[T]:
        """Plain data of every rank, on every rank, by rank."""
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, value)
        return everyone

    def together(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; if one meets a user's error, all raise it.

        Raises:
            UserError: the error of the lowest rank that had one.
        """
        result, error = _attempt(work)
        errors = [text for text in self.gather(error) if text is not None]
        if errors:
            raise UserError(errors[0])
        assert result is not None
        return result[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 alone and give its result, or its user's error, to all."""
        outcome: list[Any] = list(_attempt(work)) if self.is_main else [None, None]
        dist.broadcast_object_list(outcome, src=0)
        result, error = outcome
        if error is not None:
            raise UserError(error)
        return result[0]


def _attempt(work: Callable[[], T]) -> tuple[tuple[T] | None, str | None]:
    try:
        return (work(),), None
    except UserError as error:
        return None, str(error)
