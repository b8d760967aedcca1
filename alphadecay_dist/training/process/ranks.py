"""This rank among the others, and the trainer's scalar collectives."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist

from alphadecay_dist.engines.rank_variables import local_size
from alphadecay_dist.errors import RunError, UserError

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
    threads = max(1, cores // max(1, local_size()))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


class Ranks:
    """The initialised process group as the trainer uses it; every method but :meth:`say` is collective."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._device = device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes files and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, on rank 0 alone."""
        if self.is_main:
            print(text, flush=True)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.sum(0.0)

    def sum(self, *values: float | torch.Tensor) -> list[float]:
        """Each value summed over all ranks, in fp64."""
        return self.sum_on_device(*values).tolist()

    def sum_on_device(self, *values: float | torch.Tensor) -> torch.Tensor:
        """Each value summed over all ranks, fp64 on the ranks' device: nobody waits for it."""
        mine = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self._device) for v in values])
        dist.all_reduce(mine)
        return mine

    def gather(self, value: T) -> list[T]:
        """Plain data of every rank, on every rank, by rank."""
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, value)
        return everyone

    def raise_on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; if it fails on one, all raise, so that none waits for the others.

        Raises:
            UserError: the user's error of the lowest rank that had one.
            RunError: the same for a run that cannot go on.
            RuntimeError: another rank failed otherwise; the rank that failed raises its own error.
        """
        outcome = _attempt(work)
        faults = self.gather(outcome.fault)
        if outcome.fault is None or outcome.fault.kind is not None:
            _raise_first(faults)
        return outcome.result()

    def from_main(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 alone and give its result to all; see :meth:`raise_on_all_ranks`."""
        outcome = _attempt(work) if self.is_main else _Outcome[T]()
        shared: list[Any] = [outcome.fault, outcome.value]
        dist.broadcast_object_list(shared, src=0)
        fault, value = shared
        if self.is_main:
            return outcome.result()
        _raise_first([fault])
        return value


@dataclass
class _Fault:
    """An error in a form that travels; ``kind`` is that of one that is told in a line."""

    kind: type[UserError] | type[RunError] | None
    text: str


@dataclass
class _Outcome(Generic[T]):
    """What some work gave: a value, or an error and its form that travels."""

    value: T | None = None
    error: Exception | None = None
    fault: _Fault | None = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


def _attempt(work: Callable[[], T]) -> _Outcome[T]:
    try:
        return _Outcome(work())
    except UserError as error:
        return _Outcome(error=error, fault=_Fault(UserError, str(error)))
    except RunError as error:
        return _Outcome(error=error, fault=_Fault(RunError, str(error)))
    except Exception as error:
        return _Outcome(error=error, fault=_Fault(None, f"{type(error).__name__}: {error}"))


def _raise_first(faults: list[_Fault | None]) -> None:
    """Raise the first error that is told in a line, the same on every rank, or tell that some rank failed."""
    found = [fault for fault in faults if fault is not None]
    for fault in found:
        if fault.kind is not None:
            raise fault.kind(fault.text)
    if found:
        raise RuntimeError(f"another rank failed: {found[0].text}")
