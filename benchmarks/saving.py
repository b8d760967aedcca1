"""How long training stands still for a checkpoint: saved at once, and beside training, in alternation.

    python benchmarks/saving.py --recipe demo --train.steps=40 --checkpoint.every=5
    torchrun --nproc_per_node 8 benchmarks/saving.py --recipe llama_1b --data.source=demo ...

takes the options of train.py and runs the trainer itself, ``--repeats`` times each way, in one process a
rank. Counted is the time that the trainer spends in saving, checkpoint by checkpoint, but for a run's last,
for which it waits either way. Prints a table on rank 0.
"""

from __future__ import annotations

import alphadecay_dist.openmp  # noqa: F401  (before torch is loaded, as in train.py)

# isort: split

import argparse
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from turns import is_main, trained_in_turn

from alphadecay_dist.training.outputs.run_files import read_lines
from alphadecay_dist.training.saver import Saver


class Clock:
    """Adds up the seconds of each checkpoint, by the update after which it was begun."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = defaultdict(float)
        self._inside = False
        for name in ("save", "finish"):
            setattr(Saver, name, self._timed(getattr(Saver, name)))

    def _timed(self, work: Callable[..., None]) -> Callable[..., None]:
        def timed(saver: Saver, *args: Any) -> None:
            if self._inside:  # save() finishes the one before
                return work(saver, *args)
            self._inside, begin = True, time.perf_counter()
            work(saver, *args)
            self._inside = False
            if saver.saved_at is not None:
                self.seconds[saver.saved_at] += time.perf_counter() - begin
            return None

        return timed

    def taken(self) -> list[float]:
        """The seconds of all checkpoints of a run but the last; the clock is set to zero."""
        found = [self.seconds[step] for step in sorted(self.seconds)][:-1]
        self.seconds.clear()
        return found


def main(argv: list[str]) -> None:
    """Run both ways in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="runs each way")
    options, rest = parser.parse_known_args(argv)
    ways = {name: f"--checkpoint.background={name}" for name in ("false", "true")}
    clock, still, steps, size = Clock(), defaultdict(list), defaultdict(list), 0
    for background, output in trained_in_turn(ways, options.repeats, rest):
        still[background] += clock.taken()
        if is_main():
            steps[background] += [line["step_seconds"] for line in read_lines(output / "metrics.jsonl")]
            newest = max((output / "checkpoints").glob("step-*"))
            size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    if is_main():
        print_table(still, steps, size)


def print_table(still: dict[str, list[float]], steps: dict[str, list[float]], size: int) -> None:
    """Medians, and the longest."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    print(f"{ranks} ranks, {platform.machine()}, torch {torch.__version__}, {size / 1e6:.0f} MB a checkpoint")
    print("| checkpoint.background | checkpoints | training stands still, ms | longest, ms | an update, ms |")
    print("|---|---|---|---|---|")
    for background, seconds in sorted(still.items()):
        update = 1e3 * statistics.median(steps[background])
        middle, longest = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
        print(f"| {background} | {len(seconds)} | {middle:.0f} | {longest:.0f} | {update:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # as train.py does
