"""How fast this machine computes the two parts of a spectrum: the Gram matrix and the eigensolver."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.spectral.esd import full_precision_matmul

SIZE, REPEATS = 512, 3


@dataclass(frozen=True)
class Rates:
    """Floating-point operations per second.

    Attributes:
        gram: of a product of fp32 matrices.
        tridiagonal: of LAPACK's or cuSOLVER's ``eigvalsh``, counted as 4/3 N^3 for an N x N matrix.
    """

    gram: float
    tridiagonal: float


@functools.cache
def measured_rates(device: torch.device) -> Rates:
    """The rates for one matrix on a device, on a CPU with one thread; measured once, in about 50 ms."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(_measure, device).result()


def _measure(device: torch.device) -> Rates:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(SIZE, SIZE, generator=generator, device="cpu").to(device)
    with full_precision_matmul():
        gram = matrix.T @ matrix
        products = _seconds(lambda: matrix.T @ matrix, device)
    return Rates(
        2.0 * SIZE**3 / products, 4 / 3 * SIZE**3 / _seconds(lambda: torch.linalg.eigvalsh(gram), device)
    )


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Median time of a call in seconds, after one warm-up call."""
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
