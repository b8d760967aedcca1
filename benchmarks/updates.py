"""Speed and memory of the real trainer: median tokens/s, peak memory, seconds a refresh.

    deepspeed benchmarks/updates.py --recipe llama_1b --deepspeed ds_configs/zero1.json --data.source=demo ...

takes the options of train.py, runs it in an empty directory, and prints one line of JSON on rank 0. The first
quarter of the updates is left out: kernels and caches are still being made.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from alphadecay_dist.training.metrics import read_lines


def main(argv: list[str]) -> int:
    """Run the trainer and print what it measured."""
    # The launcher is the parent of all ranks of a node: they agree on the directory.
    run = Path(tempfile.gettempdir()) / f"alphadecay-updates-{os.getppid()}"
    code = train.main([*argv, "--output_dir", str(run)])
    if os.environ.get("RANK", "0") == "0":
        if code == 0:
            print(json.dumps(summary(run)))
        shutil.rmtree(run, ignore_errors=True)
    return code


def summary(run: Path) -> dict[str, object]:
    """The figures of a finished run in this process."""
    updates = read_lines(run / "metrics.jsonl")
    refreshes = read_lines(run / "decay.jsonl")
    steady = [line["tokens_per_second"] for line in updates[len(updates) // 4 :]]
    cuda = torch.cuda.is_available()
    host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "updates": len(updates),
        "tokens_per_second": round(statistics.median(steady), 1),
        "refresh_seconds": [round(line["seconds"], 3) for line in refreshes],
        "peak_gib": round((torch.cuda.max_memory_allocated() if cuda else host_bytes) / 2**30, 2),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
