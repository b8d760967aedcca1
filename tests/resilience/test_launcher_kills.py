"""Kills through the real launchers: of a rank, or of the launcher; the same command goes on each time."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from alphadecay_dist.training.outputs.run_files import STATUS, read_status
from tests.resilience.kills import begin_of, differences
from tests.resilience.launchers import RANKS, launched, processes_of, ranks_of, updates, wait_until
from tests.resilience.launching import holders
from tests.training.runs import engine_options, tiny_options, train_on

pytestmark = [pytest.mark.kills, pytest.mark.launcher]

EVERY = 5
LAUNCHER, RANK = "the launcher", "a rank"


@pytest.mark.parametrize(
    ("launcher", "engine", "victims", "steps"),
    [
        ("deepspeed", "2", [RANK], 40),
        ("torchrun", "fsdp2", [LAUNCHER], 40),
        ("python", "fsdp2", [RANK], 60),
        *(
            pytest.param(*pair, [LAUNCHER, RANK, RANK], 70, marks=pytest.mark.long)
            for pair in [
                ("deepspeed", "1"),
                ("deepspeed", "2"),
                ("deepspeed", "3"),
                ("deepspeed", "3_offload"),
                ("torchrun", "ddp"),
                ("torchrun", "fsdp2"),
            ]
        ),
    ],
)
def test_after_kills_through_a_launcher_the_run_is_the_unbroken_one(
    tmp_path, launcher, engine, victims, steps
):
    options = tiny_options(
        tmp_path,
        train__steps=steps,
        checkpoint__every=EVERY,
        checkpoint__keep=2,
        eval__tokens=500,
        logging__sequences=True,
    )
    given = [*engine_options(engine), *options]
    output = tmp_path / "run"
    dice = random.Random(f"{launcher}/{engine}")
    for victim in dice.sample(victims, len(victims)):
        begin = begin_of(output)
        with launched(launcher, output, given) as process:
            done = killed_in_mid_run(process, output, victim, dice)
        assert begin <= done < steps
        assert 0 <= done - begin_of(output) <= EVERY, f"{victim} killed after update {done}"
    with launched(launcher, output, given) as process:
        assert process.wait(300) == 0, (tmp_path / "printed").read_text()
    train_on(RANKS[launcher], engine, tmp_path / "whole", options)
    assert differences(tmp_path / "whole", output) == []


def killed_in_mid_run(process, output, victim, dice):
    """Kill a process of a run some time after its first update; returns the last update that it made."""
    status = output / STATUS
    before = status.stat().st_mtime_ns if status.is_file() else 0
    wait_until(lambda: status.is_file() and status.stat().st_mtime_ns > before, 120)
    wait_until(lambda: updates(output) > read_status(output)["step"], 120)
    time.sleep(dice.uniform(0, 0.6))
    own = process.pid if victim == LAUNCHER else dice.choice(sorted(ranks_of(output)))
    assert process.poll() is None, "it ended before it was killed"
    os.kill(own, signal.SIGKILL)
    process.wait(60)
    wait_until(lambda: not processes_of(output) and not holders(output), 60)
    return updates(output)
