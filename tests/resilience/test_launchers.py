"""Signals through the real launchers, and launchers that die: see docs/reliability.md."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.training.metrics import METRICS, read_lines, read_status
from tests.ports import free_port
from tests.training.runs import ROOT, tiny_options, train_on

pytestmark = pytest.mark.slow

ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]


def command(launcher, output, options):
    port = str(free_port())
    return {
        "python": [sys.executable, "train.py"],
        "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", port, "train.py"],
        "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", port, "train.py", *ZERO2],
    }[launcher] + ["--output_dir", str(output), *options]


@contextlib.contextmanager
def started(launcher, output, options):
    """A run by a launcher, after a few updates; nothing of it is left at the end."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    with (output.parent / "printed").open("w") as printed:
        argv = command(launcher, output, options)
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=printed, stderr=printed)
    try:
        wait_until(lambda: updates(output) >= 3, 120)
        yield process
    finally:
        process.kill()
        process.wait()
        for left in ranks_of(output):
            os.kill(left, signal.SIGKILL)


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def updates(output):
    path = output / METRICS
    return len(read_lines(path)) if path.is_file() else 0


def ranks_of(output):
    """Processes of train.py that write to a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_text(errors="replace").split("\0")
            if str(output) in words and any(word.endswith("train.py") for word in words):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("launcher", "number", "code", "reason"),
    [
        ("python", signal.SIGUSR2, 75, "SIGUSR2"),
        ("torchrun", signal.SIGTERM, 1, "SIGTERM"),
        ("deepspeed", signal.SIGTERM, -15, "the launcher is gone"),
    ],
)
def test_a_signal_to_the_launcher_saves_and_ends_all_ranks(tmp_path, launcher, number, code, reason):
    output = tmp_path / "run"
    options = tiny_options(tmp_path, train__steps=100000)
    with started(launcher, output, options) as process:
        sent = time.monotonic()
        process.send_signal(number)
        found = process.wait(60)
        wait_until(lambda: not ranks_of(output), 60 - (time.monotonic() - sent))
        print(f"{launcher}, {number.name}: all ranks ended {time.monotonic() - sent:.1f} s after it")
    assert found == code, (tmp_path / "printed").read_text()
    status = read_status(output)
    assert (status["state"], status["exit_code"], status["reason"]) == ("preempted", 75, reason)
    assert newest(output / "checkpoints").manifest.step == status["step"]
    stop = [*options, f"--train.stop_after={status['step'] + 2}"]
    engine = "2" if launcher == "deepspeed" else "fsdp2"
    resumed = train_on(1 if launcher == "python" else 2, engine, output, stop)
    assert [line["step"] for line in resumed["metrics"]] == list(range(1, status["step"] + 3))


def test_no_rank_outlives_a_launcher_that_was_killed(tmp_path):
    output = tmp_path / "run"
    options = tiny_options(tmp_path, train__steps=100000)
    with started("torchrun", output, options) as process:
        assert len(ranks_of(output)) >= 2
        process.kill()
        killed = time.monotonic()
        process.wait()
        wait_until(lambda: not ranks_of(output), 10)
        print(f"torchrun, SIGKILL: all ranks ended {time.monotonic() - killed:.1f} s after it")
    assert read_status(output)["state"] == "running"
    stop = [*options, "--train.stop_after=3"]
    assert [line["step"] for line in train_on(2, "fsdp2", output, stop)["metrics"]] == [1, 2, 3]
