"""Time a sample of the spectral condition against a refresh, in turn in one process.

    python benchmarks/condition.py --shape 60m

A LLaMA is trained on random tokens in one process. A refresh is AlphaDecay's, of the tuned matrices; a sample
looks at these, the head and the embedding, or at the tuned ones alone (--tuned). It costs the call of step(),
and what the forward takes longer that keeps the inputs. Times are medians, ratios medians of those of each
turn.
"""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded)

# isort: split

import argparse
import statistics
from collections import defaultdict

import torch
from interval import BASE, Training
from refresh import machine, timed

from alphadecay_dist import AlphaDecay, SpectralCondition, param_groups

NEVER = 10**9  # updates, until which a condition records nothing
PLAIN, RECORDED, STEP, REFRESH = "update, s", "update that is recorded, s", "step(), s", "refresh, s"


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
        timed(seconds[REFRESH], decay.refresh, device)
        timed(seconds[PLAIN], training.update, device)
        condition.begin_at(0)  # the next forward is recorded
        timed(seconds[RECORDED], training.update, device)
        timed(seconds[STEP], condition.step, device)
    threads, tokens = torch.get_num_threads(), args.batch * args.seq
    print(f"{machine(device)}, {threads} threads, torch {torch.__version__}, {args.repeats} repeats\n")
    print(f"| model | tokens | {' | '.join([REFRESH, STEP, PLAIN, RECORDED])} | sample / refresh |")
    print("|---" * 7 + "|")
    cells = [f"{statistics.median(seconds[name]):.3f}" for name in (REFRESH, STEP, PLAIN, RECORDED)]
    print(f"| {args.shape} | {tokens:,} | {' | '.join(cells)} | {_ratio(seconds):.2f} |")


def _ratio(seconds: dict[str, list[float]]) -> float:
    """What a sample costs over a refresh: its step, and what recording added to an update."""
    turns = zip(*(seconds[name] for name in (STEP, RECORDED, PLAIN, REFRESH)), strict=True)
    return statistics.median((step + recorded - plain) / refresh for step, recorded, plain, refresh in turns)


if __name__ == "__main__":
    main()
