"""Several matrices at once: on a CPU, a host thread a matrix and one BLAS thread in each.

That is faster than one matrix after the other on all threads (tridiagonalisation scales badly), and it makes
the result of a matrix independent of the number of threads: fp32 rounding would otherwise move alpha by 1e-6
between a rank with one thread and a rank with eight.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from alphadecay_dist.spectral.analysis import Analysis, analyze
from alphadecay_dist.spectral.esd import full_precision_matmul


def analyze_each(matrices: Iterable[tuple[str, Tensor]], *, fit: str = "hill") -> dict[str, Analysis]:
    """Analyse named matrices, (m, n) each.

    The iterable is advanced by this thread alone, and no further than one matrix a host thread ahead: it may
    gather weights as it goes, under a memory budget.

    Args:
        matrices: names and matrices; those on one device only.
        fit: the estimator of alpha, see :func:`analyze`.

    Returns:
        An analysis by name, in the order given.
    """
    found: dict[str, Analysis] = {}
    workers = torch.get_num_threads()
    pending: deque[tuple[str, Future[Analysis]]] = deque()

    def finish_oldest() -> None:
        name, future = pending.popleft()
        found[name] = future.result()

    with full_precision_matmul(), _one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        for name, matrix in matrices:
            if matrix.device.type != "cpu":
                found[name] = analyze(matrix, fit=fit)  # its own stream of work: host threads would not help
                continue
            pending.append((name, pool.submit(analyze, matrix, fit=fit)))
            if len(pending) == workers:
                finish_oldest()
        while pending:
            finish_oldest()
    return found


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
