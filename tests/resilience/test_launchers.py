"""Signals through the real launchers, and launchers that die: see docs/reliability.md."""

from __future__ import annotations

import signal
import time

import pytest

from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.training.outputs.run_files import read_status
from tests.resilience.launchers import processes_of, ranks_of, started, wait_until
from tests.training.runs import ROOT, tiny_options, train_on

pytestmark = [pytest.mark.kills, pytest.mark.launcher]

ZERO2 = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json")]


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
    options += ZERO2 if launcher == "deepspeed" else []
    with started(launcher, output, options) as process:
        sent = time.monotonic()
        process.send_signal(number)
        found = process.wait(60)
        wait_until(lambda: not processes_of(output), 60 - (time.monotonic() - sent))
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
        wait_until(lambda: not processes_of(output), 10)
        print(f"torchrun, SIGKILL: all ranks ended {time.monotonic() - killed:.1f} s after it")
    assert read_status(output)["state"] == "running"
    stop = [*options, "--train.stop_after=3"]
    assert [line["step"] for line in train_on(2, "fsdp2", output, stop)["metrics"]] == [1, 2, 3]
