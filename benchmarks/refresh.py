"""Time a refresh's spectra: ours against the released algorithm, in alternation in one process.

    python benchmarks/refresh.py --sizes 60m 130m 350m 1b_layer

Ours analyses the tuned matrices of a model. The released algorithm, written anew from its description,
takes the singular values of every nn.Linear with the head, in fp32, one at a time. The floor is the work that
cannot be avoided, half a Gram matrix and a tridiagonalisation, at the rates that this machine reaches in the
same run; the tridiagonal rate is that of eigvalsh, which spends nearly all of its time there.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alphadecay_dist.spectral import analyze_each

VOCABULARY = 32000
SIZES = {  # hidden, intermediate, layers, whether the head is timed too
    "tiny": (128, 344, 2, True),
    "60m": (512, 1376, 8, True),
    "130m": (768, 2048, 12, True),
    "350m": (1024, 2736, 24, True),
    "1b_layer": (2048, 5461, 1, False),
    "1b": (2048, 5461, 24, True),
}


def main() -> None:
    """Print the machine and a table with a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["60m", "130m", "350m", "1b_layer"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    threads = torch.get_num_threads()
    print(f"{machine(device)}, {threads} threads, torch {torch.__version__}, {args.repeats} repeats\n")
    print(
        "| model | matrices | ours, s | released, s | ratio | Gram, GFLOP/s | tridiagonal, GFLOP/s "
        "| floor, s | ours / floor | alpha error, ours | alpha error, released |\n" + "|---" * 11 + "|"
    )
    for name in args.sizes:
        print(row(name, args.repeats, device), flush=True)


def row(name: str, repeats: int, device: torch.device) -> str:
    """One line of the table: medians over the repeats."""
    hidden, intermediate, layers, with_head = SIZES[name]
    layer = [(hidden, hidden)] * 4 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    torch.manual_seed(0)
    weights = [0.02 * torch.randn(shape, device=device) for shape in layer * layers]
    head = [0.02 * torch.randn(VOCABULARY, hidden, device=device)] if with_head else []
    named = [(str(number), weight) for number, weight in enumerate(weights)]
    seconds: dict[str, list[float]] = {"ours": [], "released": [], "gram": [], "tridiagonal": []}
    analyze_each(named[:7])  # threads and libraries are up
    for _ in range(repeats):
        ours = timed(seconds["ours"], lambda: analyze_each(named), device)
        theirs = timed(seconds["released"], lambda: [released_alpha(w) for w in [*weights, *head]], device)
        seconds["gram"].append(best_seconds(gram, weights[-7:], device))
        grams = [gram(weight) for weight in weights[-7:]]
        seconds["tridiagonal"].append(best_seconds(torch.linalg.eigvalsh, grams, device))
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    work = {  # flops of one layer
        "gram": sum(2.0 * m * n * min(m, n) for m, n in layer),
        "tridiagonal": sum(4 / 3 * min(shape) ** 3 for shape in layer),
    }
    floor = layers * (medians["gram"] / 2 + medians["tridiagonal"])  # half the Gram matrix is enough
    truth = [true_alpha(weight) for weight in weights[:7]]
    errors = [
        max(abs(alpha - true) for alpha, true in zip(alphas, truth, strict=False))
        for alphas in ([ours[str(number)].alpha for number in range(7)], theirs)
    ]
    rates = [f"{work[what] / medians[what] / 1e9:.0f}" for what in ("gram", "tridiagonal")]
    return (
        f"| {name} | {len(weights)} | {medians['ours']:.3f} | {medians['released']:.3f} "
        f"| {medians['released'] / medians['ours']:.2f} | {' | '.join(rates)} | {floor:.3f} "
        f"| {medians['ours'] / floor:.2f} | {errors[0]:.1e} | {errors[1]:.1e} |"
    )


def released_alpha(weight: Tensor) -> float:
    """The released algorithm for one weight, from its description."""
    eigenvalues = torch.linalg.svdvals(weight.clone().float()).square().sort().values
    largest, total = eigenvalues[-1].item(), eigenvalues.sum().item()
    shares = eigenvalues / total
    _ = float((shares * shares.log()).sum()), total / largest  # entropy and stable rank: it has them too
    logs, start = eigenvalues.log(), len(eigenvalues) // 2
    count = len(eigenvalues) - start
    alpha = 1 + count / (logs[start:].sum() - count * logs[start])
    ranks = torch.arange(count, device=weight.device)
    fitted = 1 - (eigenvalues[start:] / eigenvalues[start]) ** (1 - alpha)
    (fitted - ranks / count).abs().max().item()
    return alpha.item()


def true_alpha(weight: Tensor) -> float:
    """Hill at the median of fp64 singular values."""
    logs = torch.linalg.svdvals(weight.double()).square().sort().values.log()[min(weight.shape) // 2 :]
    return 1 + len(logs) / float((logs - logs[0]).sum())


def gram(weight: Tensor) -> Tensor:
    """The whole Gram matrix of the smaller side."""
    return weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T


def best_seconds(work: Callable[[Tensor], Tensor], inputs: list[Tensor], device: torch.device) -> float:
    """Seconds for all inputs: one after the other on all threads, or a thread each, whichever is faster."""
    serial: list[float] = []
    timed(serial, lambda: [work(item) for item in inputs], device)
    if device.type != "cpu":
        return serial[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        timed(serial, lambda: list(pool.map(work, inputs)), device)
    torch.set_num_threads(threads)
    return min(serial)


def timed(seconds: list[float], work: Callable[[], Any], device: torch.device) -> Any:
    """Run, and note the wall-clock time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - begin)
    return result


def machine(device: torch.device) -> str:
    """What it runs on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
