"""Time an update alone, and beside one busy process: a raw torch loop, the trainer before and now, in turn.

    python benchmarks/busy.py --repeats 3

takes options of train.py too. Raw is a loop of torch over the demo's model with nothing set. The trainer runs
the demo with libgomp's own spin (300000, as where nothing is set), and with the one that it sets itself. Each
run is a process of its own with all cores; the busy process counts. Seconds are medians of the updates,
ratios medians of those of each turn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from refresh import machine

from alphadecay_dist.openmp import SPINS
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.outputs.run_files import read_lines
from alphadecay_dist.training.tasks.language.model import read_model_config

ROOT = Path(__file__).parents[1]
LIBGOMP = "300000"  # its default
WAYS = {"raw torch loop": None, "trainer, before": LIBGOMP, "trainer, now": SPINS}
NOW = "trainer, now"
WARM_UP = 2  # updates that are left out


def main() -> None:
    """Print the machine and a table with a row a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--updates", type=int, default=6, help=f"of each run; the first {WARM_UP} warm up")
    parser.add_argument("--device", choices=["cpu"], default="cpu")
    parser.add_argument("--raw", type=int, metavar="UPDATES", help=argparse.SUPPRESS)
    args, options = parser.parse_known_args()
    if args.raw is not None:
        print(*raw_loop(args.raw, options))
        return
    seconds: dict[bool, dict[str, list[float]]] = {busy: {way: [] for way in WAYS} for busy in (False, True)}
    for _ in range(args.repeats):
        for busy, found in seconds.items():
            for way in WAYS:
                with busy_process() if busy else contextlib.nullcontext():
                    found[way].append(statistics.median(timed(way, args.updates, options)[WARM_UP:]))
    cores = len(os.sched_getaffinity(0))
    print(f"{machine(torch.device('cpu'))}, {cores} of them ours, torch {torch.__version__}")
    print("| an update | alone, s | of the trainer's now | beside a busy process, s | of the trainer's now |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        cells = []
        for found in seconds.values():
            turns = zip(found[way], found[NOW], strict=True)
            ratio = statistics.median(own / now for own, now in turns)
            cells += [f"{statistics.median(found[way]):.3f}", f"{ratio:.2f}"]
        print(f"| {way} | {' | '.join(cells)} |")


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """One process that does nothing but count."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def timed(way: str, updates: int, options: list[str]) -> list[float]:
    """Seconds of each update of one run."""
    named = ("OMP_", "GOMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    if WAYS[way] is None:
        command = [sys.executable, __file__, "--raw", str(updates), *options]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return [float(word) for word in done.stdout.split()]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--logging.wandb=off", "--checkpoint.every=0"]
        command += [f"--train.stop_after={updates}", "--eval.tokens=2000", f"--output_dir={folder}/run"]
        environment |= {"GOMP_SPINCOUNT": WAYS[way]}
        subprocess.run([*command, *options], env=environment, check=True, stdout=subprocess.DEVNULL)
        lines = read_lines(Path(folder) / "run" / "metrics.jsonl")
    return [line["step_seconds"] for line in lines]


def raw_loop(updates: int, options: list[str]) -> list[float]:
    """Seconds of each update of a plain loop over the recipe's model, on all threads."""
    from transformers import LlamaForCausalLM  # noqa: PLC0415  (slow to load)

    recipe = load_config("demo", [option.removeprefix("--") for option in options])
    config = read_model_config(recipe.model.name, recipe.train.seq_len)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shape = recipe.train.global_batch, recipe.train.seq_len
    seconds = []
    for _ in range(updates):
        tokens = torch.randint(config.vocab_size, shape)
        begin = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
