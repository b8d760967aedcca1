"""Signals to srun itself and to its step, without slurm/: see docs/reliability.md."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time

import pytest

from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.training.outputs.run_files import read_status
from tests.ports import free_port
from tests.slurm.cluster import wait_until
from tests.slurm.jobs import updates
from tests.training.runs import ROOT, tiny_options

pytestmark = pytest.mark.slurm


@contextlib.contextmanager
def started(cluster, output, options):
    """Two ranks on two nodes by a bare srun, after a few updates."""
    step = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--job-name", output.name]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "1"}
    train = ["bash", "slurm/rank.sh", "train.py", "--output_dir", str(output), *options]
    process = subprocess.Popen(
        [*step, *train],
        cwd=ROOT,
        env={**cluster.environment, **rendezvous, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: updates(output) >= 3, 150)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("to", "number"), [("srun", signal.SIGUSR2), ("its tasks", signal.SIGTERM)])
def test_a_signal_that_reaches_the_tasks_saves_and_ends_all(tmp_path, cluster, to, number):
    output = tmp_path / f"run-{number.name}"
    with started(cluster, output, tiny_options(tmp_path, train__steps=100000)) as process:
        sent = time.monotonic()
        if to == "srun":
            process.send_signal(number)
        else:
            cluster.run("scancel", f"--signal={number.name}", f"--name={output.name}")
        assert process.wait(60) == 75
        print(f"{number.name} to {to}: all ranks ended {time.monotonic() - sent:.1f} s after it")
    status = read_status(output)
    assert (status["state"], status["exit_code"], status["reason"]) == ("preempted", 75, number.name)
    assert newest(output / "checkpoints").manifest.step == status["step"]


def test_sigterm_to_srun_kills_the_tasks_at_once(tmp_path, cluster):
    """So slurm/job.py keeps srun in a session of its own and sends it SIGUSR2."""
    output = tmp_path / "run"
    with started(cluster, output, tiny_options(tmp_path, train__steps=100000)) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGKILL
    assert read_status(output)["state"] == "running"
