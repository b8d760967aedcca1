"""Runs by the real launchers, and their processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from alphadecay_dist.training.outputs.run_files import METRICS, read_lines
from tests.ports import free_port
from tests.training.runs import ROOT

RANKS = {"python": 1, "torchrun": 2, "deepspeed": 2}


def command(launcher, output, options):
    port = str(free_port())
    return {
        "python": [sys.executable, "train.py"],
        "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", port, "train.py"],
        "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", port, "train.py"],
    }[launcher] + ["--output_dir", str(output), *options]


@contextlib.contextmanager
def launched(launcher, output, options):
    """A run by a launcher, that has just begun; nothing of it is left at the end."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    # As forked ranks have it; torchrun would take one thread a rank, however many cores there are.
    environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // RANKS[launcher]))
    with (output.parent / "printed").open("w") as printed:
        argv = command(launcher, output, options)
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=printed, stderr=printed)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for left in processes_of(output):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


@contextlib.contextmanager
def started(launcher, output, options):
    """A run by a launcher, after a few updates; nothing of it is left at the end."""
    with launched(launcher, output, options) as process:
        wait_until(lambda: updates(output) >= 3, 120)
        yield process


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def updates(output):
    """Update of the last line in metrics.jsonl."""
    path = output / METRICS
    lines = read_lines(path) if path.is_file() else []
    return lines[-1]["step"] if lines else 0


def processes_of(output):
    """Processes of train.py that write to a directory, and their launchers."""
    return list(_commands_of(output))


def ranks_of(output):
    """Those without the launchers: what an interpreter was given to run, after its flags, is train.py."""
    return [own for own, words in _commands_of(output).items() if any("train.py" in w for w in words[1:3])]


def _commands_of(output):
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if str(output) in words and any(word.endswith("train.py") for word in words):
                found[int(path.parent.name)] = words
    return found
