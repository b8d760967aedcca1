"""Time a sample of the spectral condition against a refresh, in turn in one process.

    python benchmarks/condition.py --shape 60m

A LLaMA is trained on random tokens in one process. A refresh is AlphaDecay's, of the tuned matrices; a sample
looks at these, the head and the embedding, or at the tuned ones alone (--tuned). It costs the call of step(),
and what the forward takes longer that keeps the inputs. Beside a refresh, at the same update, a sample
takes the spectra of the tuned weights from it; alone it has its own. Times are medians, ratios medians of
those of each turn. On a CPU they are CPU seconds of all threads, which other work hardly moves.
"""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from interval import BASE, Training
from refresh import machine, timed

from alphadecay_dist import AlphaDecay, SpectralCondition, param_groups

NEVER = 10**9  # updates, until which a condition records nothing
PLAIN, RECORDED, REFRESH = "update, s", "update that is recorded, s", "refresh, s"
BESIDE, ALONE = "step() beside a refresh, s", "step() alone, s"


def main() -> None:
    """Print the machine and a table with a row a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("tiny", "60m", "130m"), default="60m")
    parser.add_argument("--batch", type=int, default=8, help="sequences at once")
    parser.add_argument("--seq", type=int, default=256, help="tokens of each")
    parser.add_argument("--accumulate", type=int, default=1, help="batches an update")
    parser.add_argument("--tuned", action="store_true", help="sample the tuned matrices alone")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    training = Training(args, lambda model: param_groups(model, weight_decay=BASE))
    decay = AlphaDecay(training.model, training.optimizer, weight_decay=BASE)
    which = r"\.\d+\." if args.tuned else None
    condition = SpectralCondition(training.model, every=NEVER, which=which, decay=decay)
    device = torch.device(args.device)
    seconds: dict[str, list[float]] = defaultdict(list)
    condition.begin_at(1)
    training.update()  # warms up
    for _ in range(args.repeats):
        spent(seconds[REFRESH], decay.refresh, device)
        spent(seconds[PLAIN], training.update, device)
        condition.begin_at(0)  # the next forward is recorded
        spent(seconds[RECORDED], training.update, device)
        spent(seconds[BESIDE], condition.step, device)
        decay.begin_at(0)  # the refresh is forgotten
        condition.begin_at(0)
        training.update()
        spent(seconds[ALONE], condition.step, device)
    threads, tokens = torch.get_num_threads(), args.batch * args.seq
    print(f"{machine(device)}, {threads} threads, torch {torch.__version__}, {args.repeats} repeats\n")
    columns = (REFRESH, BESIDE, ALONE, PLAIN, RECORDED)
    print(f"| model | tokens | {' | '.join(columns)} | sample / refresh, beside it | alone |")
    print("|---" * 9 + "|")
    cells = [f"{statistics.median(seconds[name]):.3f}" for name in columns]
    ratios = [f"{_ratio(seconds, step):.2f}" for step in (BESIDE, ALONE)]
    print(f"| {' | '.join([args.shape, f'{tokens:,}', *cells, *ratios])} |")


def spent(seconds: list[float], work: Callable[[], object], device: torch.device) -> None:
    """Append what a piece of work took."""
    if device.type != "cpu":
        timed(seconds, work, device)
        return
    begin = time.process_time()
    work()
    seconds.append(time.process_time() - begin)


def _ratio(seconds: dict[str, list[float]], step: str) -> float:
    """What a sample costs over a refresh: its step, and what recording added to an update."""
    turns = zip(*(seconds[name] for name in (step, RECORDED, PLAIN, REFRESH)), strict=True)
    return statistics.median((step + recorded - plain) / refresh for step, recorded, plain, refresh in turns)


if __name__ == "__main__":
    main()
