"""The test cluster leaves nothing behind, however its tests end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import _processes, wait_until, why_not
from tests.training.runs import ROOT


@pytest.mark.slurm
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_nothing_is_left_of_a_cluster_that_was_killed(tmp_path):
    command = [sys.executable, "-m", "tests.slurm.cluster"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    configuration = process.stdout.readline().strip().partition("=")[2]
    environment = {"SLURM_CONF": configuration, "PATH": "/usr/bin:/bin"}
    sbatch = ["sbatch", f"--output={tmp_path}/out", "--wrap", "echo begun; srun sleep 1000"]
    subprocess.run(sbatch, env=environment, check=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: "begun" in "".join(path.read_text() for path in tmp_path.glob("out")), 30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not _processes(configuration), 30)
    wait_until(lambda: not Path(configuration).parent.exists(), 10)
