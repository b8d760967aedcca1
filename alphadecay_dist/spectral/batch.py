"""Many weights at once: on a CPU, a host thread a matrix and one BLAS thread in each.

That is faster than one matrix after the other on all threads (tridiagonalisation scales badly), and it makes
the result of a matrix independent of the number of threads: fp32 rounding would otherwise move alpha by 1e-6
between a rank with one thread and a rank with eight. Neighbours of one small shape go in one call, where the
overhead of many would outweigh the work; the results are the same bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alphadecay_dist.spectral.analysis import analyze, analyze_stack
from alphadecay_dist.spectral.esd import full_precision_matmul
from alphadecay_dist.spectral.estimator import PUBLISHED, Estimator
from alphadecay_dist.spectral.report import Analysis

# Measured on 2 cores: 16 of 64 x 64 in one call are 4 times faster, of 344 x 128 1.6 times, of 256 x 256 not.
STACK_MAX_NUMEL = 2**16
STACK_MAX_COUNT = 16


def analyze_each(
    weights: Iterable[tuple[str, Tensor]], estimator: Estimator = PUBLISHED, room: int | None = None
) -> dict[str, Analysis]:
    """Analyse named weights, as :func:`analyze` takes them.

    The iterable is advanced by this thread alone, and no further ahead than one matrix a host thread, or
    one stack of small ones: it may gather weights as it goes, under a memory budget.

    Args:
        weights: names and weights; those on one device only.
        estimator: how to read alpha.
        room: bytes of weights that may wait for their analysis while the next one is taken, beside that; no
            limit but the number of threads by default. Each is let go of when it is analysed.

    Returns:
        An analysis by name, in the order given.
    """
    workers = Workers(torch.get_num_threads())
    with full_precision_matmul(), _one_blas_thread():
        return workers.analyze_each(weights, estimator, room)


class Workers:
    """Host threads of one BLAS thread each, started and ready; for one call of :meth:`analyze_each`.

    Constructing them changes no other thread, though ``torch.set_num_threads`` sets the number of BLAS
    threads both of the thread that calls it and of all that begin later.

    Args:
        count: number of threads.
    """

    def __init__(self, count: int) -> None:
        before = torch.get_num_threads()
        self.count = count
        self._pool = ThreadPoolExecutor(count, "alphadecay", initializer=_become_one_blas_thread)
        all_started = threading.Barrier(count)
        for started in [self._pool.submit(all_started.wait) for _ in range(count)]:
            started.result()
        torch.set_num_threads(before)  # what they took for themselves is not for threads that begin later

    def analyze_each(
        self,
        weights: Iterable[tuple[str, Tensor]],
        estimator: Estimator,
        room: int | None = None,
    ) -> dict[str, Analysis]:
        """As the function of that name, which sees to the precision of products too; then end the threads.

        It may be called in another thread than the one that constructed them.
        """
        found: dict[str, Analysis] = {}
        pending: deque[tuple[list[str], Future[list[Analysis]], int]] = deque()
        # Small ones that are not yet a stack wait as well.
        small = math.inf if room is None else room // STACK_MAX_COUNT
        most_bytes = math.inf if room is None else room - small

        def finish(most: int) -> None:
            """Wait until no more than ``most`` are pending, and of them no more than fit."""
            while len(pending) > most or sum(nbytes for _, _, nbytes in pending) > most_bytes:
                names, future, _ = pending.popleft()
                found.update(zip(names, future.result(), strict=True))

        with self._pool:
            for names, stack in _stacks(weights, small):
                if stack[0].device.type != "cpu":
                    found.update(zip(names, _analyze_all(stack, estimator), strict=True))
                    continue  # its own stream of work: host threads would not help
                nbytes = sum(weight.nbytes for weight in stack)
                pending.append((names, self._pool.submit(_analyze_all, stack, estimator), nbytes))
                finish(self.count - 1)
            finish(0)
        return found


def _become_one_blas_thread() -> None:
    """Each says so for itself: a new thread's first LAPACK call would use all cores, and round otherwise."""
    torch.get_num_threads()  # a thread takes the number of the process when it first asks; let that be now
    torch.set_num_threads(1)


def _stacks(
    weights: Iterable[tuple[str, Tensor]], most_bytes: float
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The weights one by one; neighbours that are small matrices of one shape and type together.

    The consumer empties each list when it is done with it; here nothing is kept of it.
    """
    names: list[str] = []
    stack: list[Tensor] = []
    for name, weight in weights:
        if stack and (len(stack) == STACK_MAX_COUNT or not _alike(stack[0], weight)):
            yield names, stack
            names, stack = [], []
        names, stack = [*names, name], [*stack, weight]
        held = sum(own.nbytes for own in stack)
        if (
            held > most_bytes
            or weight.numel() > STACK_MAX_NUMEL
            or weight.ndim != 2
            or isinstance(weight, DTensor)
        ):
            del weight
            yield names, stack
            names, stack = [], []
    if stack:
        yield names, stack


def _alike(first: Tensor, second: Tensor) -> bool:
    same_type = first.dtype == second.dtype and type(first) is type(second)
    return same_type and first.shape == second.shape and first.device == second.device


def _analyze_all(stack: list[Tensor], estimator: Estimator) -> list[Analysis]:
    """Analyses of a list, which is emptied: its memory is free when the result is known."""
    try:
        if len(stack) > 1:
            with contextlib.suppress(RuntimeError, MemoryError):  # no memory for them all together
                return analyze_stack(torch.stack(stack), estimator)
        return [analyze(matrix, estimator) for matrix in stack]
    finally:
        stack.clear()


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
