"""Processes that read images for one rank, by torch's DataLoader."""

from __future__ import annotations

import functools
import os
import signal
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.process.preemption import SIGNALS

PARENT_LOOKED_FOR = 5.0  # seconds between two looks, as torch has it


class Jobs(Dataset, ABC):
    """What the processes do: a job by its number. A mistake in the data is handed over, not raised there."""

    @abstractmethod
    def job(self, number: int) -> Any:
        """What a number stands for: tensors in a tuple."""

    def __getitem__(self, number: int) -> Any:
        """The job's result, or the UserError that it ended with."""
        try:
            return self.job(number)
        except UserError as error:
            return error
        except Exception as error:  # an odd image makes the libraries raise a dozen unrelated types
            reason = " ".join(str(error).split())[:300]
            return UserError(f"data: an image cannot be augmented: {type(error).__name__}: {reason}")


class Results:
    """The results of jobs in the order of their numbers, computed ahead; started from the main thread.

    Args:
        jobs: what is to be done.
        numbers: of the jobs; may be endless. Neither they nor the jobs may hold what holds the results.
        workers: number of processes.
    """

    def __init__(self, jobs: Jobs, numbers: Iterable[int], workers: int) -> None:
        loader = DataLoader(
            jobs,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            worker_init_fn=functools.partial(_on_start, os.getpid()),
            multiprocessing_context="fork",  # they have the model's libraries loaded, and the images
            generator=torch.Generator(),  # whose draws nobody uses; the process's own is the training's
        )
        before = signal.getsignal(signal.SIGCHLD)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the processes begin with it
        self._held = [iter(loader)]
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # Left to the collector, its queues would be closed before it has told the processes to end.
        weakref.finalize(self, self._held.clear)
        # torch's handler would raise in the middle of an update, on one rank alone; see __next__ instead.
        signal.signal(signal.SIGCHLD, before)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next result.

        Raises:
            UserError: an image cannot be read, or a process ended.
        """
        try:
            result = next(self._held[0])
        except RuntimeError as error:
            raise UserError(
                f"data: a process that reads images failed: {' '.join(str(error).split())[-300:]}"
            ) from None
        if isinstance(result, UserError):
            raise result
        return result


def _on_start(parent: int, _worker: int) -> None:
    """What asks a run to stop is not for the processes that read for it: they end after it, or by it alone.

    A cluster sends its signals to every process, and the run still needs images until its ranks have agreed
    to stop. So they are blocked from the fork on, see :class:`Results`.
    """
    threading.Thread(target=_end_by_parent, args=(parent,), daemon=True).start()


def _end_by_parent(parent: int) -> None:
    """End where the process that this one reads for says so, or is no more.

    torch's own watch takes whoever is the parent when it begins for that process: where that one died before,
    this one would wait for work forever.
    """
    while os.getppid() == parent:
        told = signal.sigtimedwait([signal.SIGTERM], PARENT_LOOKED_FOR)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)
