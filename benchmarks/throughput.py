"""What AlphaDecay costs a training run: Uniform and AlphaDecay in alternation, on any engine.

    torchrun --nproc_per_node 8 benchmarks/throughput.py --recipe llama_1b --data.source=demo --train.steps=40
    deepspeed benchmarks/throughput.py --repeats 3 --deepspeed ds_configs/zero2.json --recipe llama_1b ...

takes the options of train.py and runs the trainer itself, ``--repeats`` times with each policy, in one
process a rank. Of each run the first quarter of the updates is left out (kernels and caches are still being
made), and so are updates with a refresh, whose exposed seconds are told apart. Prints a table on rank 0.
"""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded, as in train.py)

# isort: split

import argparse
import os
import platform
import resource
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from turns import is_main, trained_in_turn

from alphadecay_dist.training.outputs.run_files import read_lines

WINDOW = 500  # updates between refreshes, as published
POLICIES = ("uniform", "alphadecay")


@dataclass
class Figures:
    """What the runs of one policy measured."""

    tokens_per_second: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    mfu: list[float] = field(default_factory=list)
    refresh_seconds: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    def add(self, folder: Path) -> None:
        """Take up a finished run of this process."""
        updates, decays = read_lines(folder / "metrics.jsonl"), folder / "decay.jsonl"
        refreshes = read_lines(decays) if decays.is_file() else []  # Uniform has none
        # A refresh lies before the update that follows it: its seconds are that update's.
        busy = {line[key] + 1 for line in refreshes for key in ("step", "written_at")}
        steady = [line for line in updates[len(updates) // 4 :] if line["step"] not in busy]
        self.tokens_per_second += [line["tokens_per_second"] for line in steady]
        self.step_seconds += [line["step_seconds"] for line in steady]
        self.mfu += [line["mfu"] for line in steady if line["mfu"] is not None]
        self.refresh_seconds += [line["seconds"] for line in refreshes[1:] or refreshes]
        self.peak_gib = max(self.peak_gib, _peak_bytes() / 2**30)


def main(argv: list[str]) -> None:
    """Run both policies in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each policy")
    options, rest = parser.parse_known_args(argv)
    figures = {policy: Figures() for policy in POLICIES}
    ways = {policy: f"--decay.policy={policy}" for policy in POLICIES}
    for policy, output in trained_in_turn(ways, options.repeats, rest):
        if is_main():
            figures[policy].add(output)
    if is_main():
        print_table(figures)


def print_table(figures: dict[str, Figures]) -> None:
    """The figures of both policies, and their ratios."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    print(f"{os.environ.get('WORLD_SIZE', '1')} ranks, {device}, torch {torch.__version__}")
    print("| policy | updates | tokens/s | MFU | peak GiB | exposed seconds a refresh |")
    print("|---|---|---|---|---|---|")
    for policy, found in figures.items():
        speed = statistics.median(found.tokens_per_second)
        mfu, seconds = _median(found.mfu, ".1%"), _median(found.refresh_seconds, ".3f")
        count = len(found.tokens_per_second)
        print(f"| {policy} | {count} | {speed:,.0f} | {mfu} | {found.peak_gib:.2f} | {seconds} |")
    uniform, ours = (figures[policy] for policy in POLICIES)
    step = statistics.median(ours.step_seconds)
    steady = statistics.median(uniform.step_seconds) / step
    refresh = statistics.median(ours.refresh_seconds)
    share = refresh / (refresh + WINDOW * step)
    print(f"updates without a refresh: {steady:.4f} of Uniform's tokens/s")
    print(f"refreshes: {share:.4%} of a window of {WINDOW} updates")
    print(f"together: {steady * (1 - share):.4f} of Uniform's tokens/s")


def _median(values: list[float], style: str) -> str:
    return format(statistics.median(values), style) if values else "-"


def _peak_bytes() -> int:
    """Of this run on a GPU; on a host of the whole process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # as train.py does
