"""A run that is stopped and killed, with the processes that read its images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.resilience.launchers import launched, processes_of, ranks_of, updates, wait_until
from tests.training.runs import ROOT, engine_options, left_behind
from tests.training.tasks.vision.runs import options_of, run, same_tensors, write_idx

pytestmark = [pytest.mark.ranks, pytest.mark.launcher, pytest.mark.kills]


def test_signals_to_all_its_processes_and_a_kill_lose_nothing(tmp_path):
    source = write_idx(tmp_path / "idx", validation=400)  # most of the time goes to evaluations
    options = options_of(source, train__steps=6, eval__every=1, checkpoint__every=1, checkpoint__keep=2)
    whole = run(1, "ddp", tmp_path / "whole", options)
    broken = tmp_path / "broken"
    argv = [sys.executable, "train.py", "--engine=ddp", f"--output_dir={broken}", *options]
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        begun = len(left_behind(broken)["metrics"])
        until = time.monotonic() + 120
        while len(left_behind(broken)["metrics"]) < begun + 2 and time.monotonic() < until:
            time.sleep(0.05)
        if number == signal.SIGTERM:
            os.killpg(process.pid, number)  # as a cluster does: the processes that read images too
        else:
            process.kill()
        assert process.wait(60) == code
        wait_until(lambda: not processes_of(broken), 60)
    assert run(1, "ddp", broken, options) == whole
    assert same_tensors(broken, tmp_path / "whole")


def test_two_kills_through_a_launcher_lose_nothing(tmp_path):
    source = write_idx(tmp_path / "idx", validation=100)
    options = options_of(source, train__steps=8, eval__every=1, checkpoint__every=1, checkpoint__keep=2)
    given, broken = [*engine_options("fsdp2"), *options], tmp_path / "broken"
    for victim in (min, max):  # a rank; a process that reads images, which is a later fork of one
        begun = updates(broken)
        with launched("torchrun", broken, given) as launcher:
            wait_until(lambda begun=begun: updates(broken) > begun, 120)
            os.kill(victim(ranks_of(broken)), signal.SIGKILL)
            assert launcher.wait(60) != 0
            wait_until(lambda: not processes_of(broken), 60)
        assert updates(broken) < 8
    assert run(2, "fsdp2", broken, options) == run(2, "fsdp2", tmp_path / "whole", options)
    assert same_tensors(broken, tmp_path / "whole")
