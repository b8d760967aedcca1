"""Time the ways to a spectrum, by size: singular values or eigenvalues, one by one or in stacks.

    python benchmarks/solvers.py --sizes 64 128 512 768 1024 2048

Each way gets the same stack of square fp32 matrices, in turn, in one process. On a GPU it tries every driver
of torch, and cuSOLVER's batched solver by way of CuPy where that is installed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from refresh import machine, timed
from torch import Tensor

from alphadecay_dist.spectral import analyze_each

try:
    import cupy
except ImportError:
    cupy = None

Way = Callable[[Tensor], object]  # of a (B, N, N) stack


def main() -> None:
    """Print the machine and a table with a row a way, a column a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 512, 768, 1024, 2048])
    parser.add_argument("--count", type=int, default=4, help="matrices in a stack")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    print(f"{machine(device)}, torch {torch.__version__}, {args.count} matrices, {args.repeats} repeats\n")
    columns = {size: milliseconds(size, args.count, args.repeats, device) for size in args.sizes}
    print("| ms a matrix | " + " | ".join(f"N = {size}" for size in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for name in ways(device):
        print(f"| {name} | " + " | ".join(f"{column[name]:.2f}" for column in columns.values()) + " |")


def milliseconds(size: int, count: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds a matrix of every way; the ways take turns."""
    torch.manual_seed(0)
    stack = 0.02 * torch.randn(count, size, size, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in ways(device)}
    for repeat in range(repeats + 1):
        for name, way in ways(device).items():
            timed(seconds[name] if repeat else [], partial(way, stack), device)  # the first warms up
    return {name: 1000 * statistics.median(values) / count for name, values in seconds.items()}


def ways(device: torch.device) -> dict[str, Way]:
    """Every way to the spectra of a stack on this device."""
    return cuda_ways() if device.type == "cuda" else cpu_ways()


def cpu_ways() -> dict[str, Way]:
    """LAPACK's: it has one driver for each, so threads and stacks are what differs."""
    return {
        "svdvals, one by one, all threads": one_by_one(torch.linalg.svdvals),
        "whole Gram + eigvalsh, one by one, all threads": one_by_one(gram_eigenvalues),
        "whole Gram + eigvalsh, the stack in one call": gram_eigenvalues,
        "whole Gram + eigvalsh, a thread a matrix": thread_a_matrix,
        "ours (half Gram, a thread a matrix, small ones stacked) with fits": ours,
    }


def cuda_ways() -> dict[str, Way]:
    """The drivers of cuSOLVER."""
    found: dict[str, Way] = {
        f"svdvals {driver}, one by one": one_by_one(partial(torch.linalg.svdvals, driver=driver))
        for driver in ("gesvdj", "gesvd", "gesvda")
    }
    found["Gram + eigvalsh, one by one"] = one_by_one(gram_eigenvalues)
    found["Gram + eigvalsh, the stack in one call"] = gram_eigenvalues
    if cupy is not None:
        found["Gram + CuPy eigvalsh, the stack in one call"] = cupy_eigenvalues
    found["ours with fits"] = ours
    return found


def one_by_one(solve: Callable[[Tensor], Tensor]) -> Way:
    """A way that takes the matrices in turn."""
    return lambda stack: [solve(matrix) for matrix in stack]


def gram_eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues by the Gram matrix, of one matrix or a stack."""
    return torch.linalg.eigvalsh(matrices.mT @ matrices)


def cupy_eigenvalues(stack: Tensor) -> Tensor:
    """The same by CuPy, which takes cuSOLVER's batched solver."""
    return torch.from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(stack.mT @ stack)))


def thread_a_matrix(stack: Tensor) -> list[Tensor]:
    """Host threads with a BLAS thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        spectra = list(pool.map(gram_eigenvalues, stack))
    torch.set_num_threads(threads)
    return spectra


def ours(stack: Tensor) -> object:
    """A refresh's share of the work."""
    return analyze_each((str(number), matrix) for number, matrix in enumerate(stack))


if __name__ == "__main__":
    main()
