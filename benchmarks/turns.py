"""Runs of the trainer itself in alternation, for the benchmarks that compare its settings."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from alphadecay_dist.engines.process_group import join, local_device


def trained_in_turn(
    ways: Mapping[str, str], repeats: int, options: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Train once in each way, then in the other order, and so on, in one process a rank.

    Args:
        ways: an option of train.py, by the way's name.
        repeats: runs each way.
        options: the others, for all.

    Yields:
        Each run that has ended, by its way and its output directory; all are removed at the end.

    Raises:
        SystemExit: a run failed; the code is its own.
    """
    # The launcher is the parent of all ranks of a node: they agree on the directory.
    folder = Path(tempfile.gettempdir()) / f"alphadecay-turns-{os.getppid()}"
    join(local_device())  # all runs are in one process group: launchers' stores do not take another
    for repeat in range(repeats):
        for way in ways if repeat % 2 == 0 else reversed(ways):
            output = folder / f"{way}-{repeat}"
            code = train.main([*options, "--output_dir", str(output), ways[way], "--logging.wandb=off"])
            if code != 0:
                raise SystemExit(code)
            yield way, output
            _forget()
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)


def is_main() -> bool:
    """Whether this is the rank that prints."""
    return os.environ.get("RANK", "0") == "0"


def _forget() -> None:
    """Give back what the last run held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
