"""Many weights at once: on a CPU, one host thread per matrix, with one BLAS thread each.

This is faster than one matrix after the other on all threads, because tridiagonalisation scales badly. It
also makes the result independent of the number of threads: otherwise fp32 rounding would move alpha by 1e-6
between a rank with one thread and a rank with eight. Small neighbouring matrices of one shape are analysed in
one call, because the overhead of many calls would outweigh the work. The results are the same bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from alphadecay_dist.spectral.analysis import analyze, analyze_stack
from alphadecay_dist.spectral.esd import full_precision_matmul
from alphadecay_dist.spectral.estimator import PUBLISHED, Estimator
from alphadecay_dist.spectral.report import Analysis
from alphadecay_dist.spectral.sharded import is_sharded

R = TypeVar("R")

# Measured on 2 cores, 16 matrices in one call: 64 x 64 is 4 times faster, 344 x 128 1.6 times, 256 x 256 not.
STACK_MAX_NUMEL = 2**16
STACK_MAX_COUNT = 16


def analyze_each(
    weights: Iterable[tuple[str, Tensor]], estimator: Estimator = PUBLISHED, room: int | None = None
) -> dict[str, Analysis]:
    """Analyse named weights, as :func:`analyze` takes them.

    Only this thread advances the iterable. It reads ahead at most one matrix per host thread, or one stack
    of small ones. So the iterable may gather weights on demand, under a memory budget.

    Args:
        weights: names and weights, all on one device.
        estimator: how to estimate alpha.
        room: bytes of weights that may wait for their analysis while the next one is taken, not counting
            that one. By default only the number of threads is a limit. A weight is released when it is
            analysed.

    Returns:
        An analysis by name, in the order given.
    """
    workers = Workers(torch.get_num_threads())
    with full_precision_matmul(), one_blas_thread():
        return workers.analyze_each(weights, estimator, room)


def measure_each(
    matrices: Iterable[tuple[str, Tensor]], measure: Callable[[str, Tensor], R], room: int | None = None
) -> dict[str, R]:
    """What ``measure`` finds in each named matrix, as :func:`analyze_each` does it: a matrix per host thread.

    Args:
        matrices: see there.
        measure: a function of name and matrix, called in several threads.
        room: see there.
    """
    workers = Workers(torch.get_num_threads())
    alone = (([name], [matrix]) for name, matrix in matrices)
    work, most_bytes = functools.partial(_measure_all, measure), math.inf if room is None else room
    with full_precision_matmul(), one_blas_thread():
        return workers.run(alone, work, most_bytes)


class Workers:
    """Host threads with one BLAS thread each, started and ready; for one call of :meth:`analyze_each`.

    Their construction affects no other thread, although ``torch.set_num_threads`` sets the number of BLAS
    threads of the calling thread and of all threads that start later.

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
        torch.set_num_threads(before)  # their setting must not apply to threads that start later

    def analyze_each(
        self,
        weights: Iterable[tuple[str, Tensor]],
        estimator: Estimator,
        room: int | None = None,
    ) -> dict[str, Analysis]:
        """Like the function of this name, but without setting the precision of products; ends the threads.

        It may be called in another thread than the one that constructed them.
        """
        # Small matrices that do not fill a stack yet wait as well.
        small = math.inf if room is None else room // STACK_MAX_COUNT
        most_bytes = math.inf if room is None else room - small

        def work(names: list[str], stack: list[Tensor]) -> list[Analysis]:
            return _analyze_all(stack, estimator)

        return self.run(_stacks(weights, small), work, most_bytes)

    def run(
        self,
        stacks: Iterable[tuple[list[str], list[Tensor]]],
        work: Callable[[list[str], list[Tensor]], list[R]],
        most_bytes: float,
    ) -> dict[str, R]:
        """What ``work`` finds of the matrices of each stack, by name; ends the threads.

        Args:
            stacks: names and matrices; the work empties each list of matrices.
            work: called in the threads, or in this one for what lies on a GPU.
            most_bytes: of matrices that wait for it.
        """
        found: dict[str, R] = {}
        pending: deque[tuple[list[str], Future[list[R]], int]] = deque()

        def finish(most: int) -> None:
            """Wait until at most ``most`` are pending, and these fit into the room."""
            while len(pending) > most or sum(nbytes for _, _, nbytes in pending) > most_bytes:
                names, future, _ = pending.popleft()
                found.update(zip(names, future.result(), strict=True))

        with self._pool:
            for names, stack in stacks:
                if stack[0].device.type != "cpu":
                    found.update(zip(names, work(names, stack), strict=True))
                    continue  # the device has its own queue: host threads would not help
                nbytes = sum(weight.nbytes for weight in stack)
                pending.append((names, self._pool.submit(work, names, stack), nbytes))
                finish(self.count - 1)
            finish(0)
        return found


def _become_one_blas_thread() -> None:
    """Each thread sets this: a new thread's first LAPACK call would use all cores, and round differently."""
    torch.get_num_threads()  # a thread reads the process's number on its first call, which must come first
    torch.set_num_threads(1)


def _stacks(
    weights: Iterable[tuple[str, Tensor]], most_bytes: float
) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The weights one by one, but neighbouring small matrices of one shape and type together.

    The consumer empties each list when it is done; nothing here keeps a reference.
    """
    names: list[str] = []
    stack: list[Tensor] = []
    for name, weight in weights:
        if stack and (len(stack) == STACK_MAX_COUNT or not _alike(stack[0], weight)):
            yield names, stack
            names, stack = [], []
        names, stack = [*names, name], [*stack, weight]
        held = sum(own.nbytes for own in stack)
        if held > most_bytes or weight.numel() > STACK_MAX_NUMEL or weight.ndim != 2 or is_sharded(weight):
            del weight
            yield names, stack
            names, stack = [], []
    if stack:
        yield names, stack


def _alike(first: Tensor, second: Tensor) -> bool:
    same_type = first.dtype == second.dtype and type(first) is type(second)
    return same_type and first.shape == second.shape and first.device == second.device


def _measure_all(measure: Callable[[str, Tensor], R], names: list[str], stack: list[Tensor]) -> list[R]:
    """Measure the matrices of a list and empty it."""
    try:
        return [measure(name, matrix) for name, matrix in zip(names, stack, strict=True)]
    finally:
        stack.clear()


def _analyze_all(stack: list[Tensor], estimator: Estimator) -> list[Analysis]:
    """Analyse the weights of a list and empty it, so that their memory is free with the result."""
    try:
        if len(stack) > 1:
            with contextlib.suppress(RuntimeError, MemoryError):  # not enough memory for all together
                return analyze_stack(torch.stack(stack), estimator)
        return [analyze(matrix, estimator) for matrix in stack]
    finally:
        stack.clear()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """LAPACK and products in one thread each: for many small ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
