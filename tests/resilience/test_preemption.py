"""A signal on one rank, at any moment: all ranks save and exit with 75, and the next start goes on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import train
from alphadecay_dist.checkpoint import writer
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.engines.native.training import TorchTraining
from alphadecay_dist.training.outputs.run_files import read_status
from alphadecay_dist.training.process.preemption import StopRequests, process_age
from tests.multirank import run_ranks
from tests.resilience.signals import before, signalled
from tests.resilience.sizes import SIZES
from tests.training.runs import argv_of, left_behind, same_weights, tiny_options, train_on, without_times

pytestmark = pytest.mark.kills


def check_goes_on(tmp_path, engine, whole):
    output, expected = whole(engine)
    resumed = train_on(2, engine, tmp_path / "run", tiny_options(tmp_path, **SIZES))
    assert without_times(resumed) == without_times(expected)
    assert same_weights(tmp_path / "run", output)
    assert read_status(tmp_path / "run")["state"] == "finished"


TERM, INT, USR2 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR2


@pytest.mark.parametrize(
    ("engine", "place", "call", "signals", "steps"),
    [
        ("3", "gradients", 6, [INT, TERM], {6}),
        ("fsdp2", "gradients", 8, [USR2], {8}),  # where an evaluation is due
        ("ddp", "step", 2, [INT], {2, 3}),
        ("2", "refresh", 2, [USR2], {6, 7}),
        ("fsdp2", "evaluate", 4, [TERM], {12}),  # the last
        ("2", "write_shard", 1, [INT], {5}),
        pytest.param("2", "gradients", 3, [TERM], {3}, marks=pytest.mark.long),
        pytest.param("3", "evaluate", 2, [TERM], {4}, marks=pytest.mark.long),
    ],
)
def test_all_ranks_stop_at_one_update_and_the_next_start_is_the_unbroken_run(
    tmp_path, whole, engine, place, call, signals, steps
):
    argv = argv_of(engine, tmp_path / "run", tiny_options(tmp_path, **SIZES))
    assert run_ranks(signalled, 2, argv, place, call, signals) == [75, 75]
    status = read_status(tmp_path / "run")
    assert status["step"] in steps
    names = {number.name for number in signals}
    assert (status["state"], status["exit_code"], status["reason"] in names) == ("preempted", 75, True)
    assert newest(tmp_path / "run" / "checkpoints").manifest.step == status["step"]
    check_goes_on(tmp_path, engine, whole)


def test_a_signal_while_the_run_starts_ends_it_without_a_trace(tmp_path, whole):
    argv = argv_of("2", tmp_path / "run", tiny_options(tmp_path, **SIZES))
    assert run_ranks(signalled, 2, argv, "initialize", 1, [TERM]) == [75, 75]
    assert not (tmp_path / "run").exists()
    assert run_ranks(signalled, 2, argv, "evaluate", 1, [TERM]) == [75, 75]
    assert read_status(tmp_path / "run") == {
        "state": "preempted",
        "step": 0,
        "exit_code": 75,
        "reason": "SIGTERM",
    }
    assert not (tmp_path / "run" / "checkpoints").exists()
    check_goes_on(tmp_path, "2", whole)


def test_a_signal_before_the_ranks_meet_ends_the_process_at_once(tmp_path):
    argv = argv_of("2", tmp_path / "run", tiny_options(tmp_path))
    with pytest.raises(AssertionError, match="rank 0: died with exit code 75"):
        run_ranks(signalled, 1, argv, "start", 1, [TERM], "0")
    assert not (tmp_path / "run").exists()


def late(argv):
    """Train; in update 4 rank 1 is an hour older."""
    original = StopRequests.set_deadline

    def remembered(self, seconds, text):
        original(self, seconds, text)
        before(TorchTraining, "gradients", 4, lambda: age(self))

    def age(requests):
        requests._began -= 3600 if os.environ["RANK"] == "1" else 0

    StopRequests.set_deadline = remembered
    return train.main(argv)


def test_after_the_deadline_the_run_stops_as_at_a_signal(tmp_path):
    options = tiny_options(tmp_path, checkpoint__deadline="1h")
    assert run_ranks(late, 2, argv_of("fsdp2", tmp_path / "run", options)) == [75, 75]
    status = read_status(tmp_path / "run")
    assert (status["state"], status["reason"]) == ("preempted", "checkpoint.deadline=1h")
    assert status["step"] == len(left_behind(tmp_path / "run")["metrics"]) == 4
    assert newest(tmp_path / "run" / "checkpoints").manifest.step == 4


def impatient(argv):
    """Train on one rank that hears SIGTERM in update 7, and again 4 s later, while it hangs in the save."""
    original = writer.write_shard

    def hang(folder, *args):
        shard = original(folder, *args)
        if folder.name == "step-00000007":
            threading.Timer(4, os.kill, (os.getpid(), TERM)).start()
            time.sleep(60)
        return shard

    writer.write_shard = hang
    return signalled(argv, "gradients", 7, [TERM], "0")


def test_a_second_signal_stops_at_once_and_names_no_half_checkpoint(tmp_path):
    options = tiny_options(tmp_path, **SIZES)
    with pytest.raises(AssertionError, match="rank 0: died with exit code 75"):
        run_ranks(impatient, 1, argv_of("fsdp2", tmp_path / "run", options))
    assert read_status(tmp_path / "run") == {
        "state": "preempted",
        "step": 7,
        "exit_code": 75,
        "reason": "SIGTERM, and then SIGTERM: stopped at once",
    }
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000005\n"
    assert [line["step"] for line in train_on(1, "fsdp2", tmp_path / "run", options)["metrics"]] == [
        *range(1, 13)
    ]


def test_a_process_knows_its_age():
    before = process_age()
    time.sleep(0.2)
    assert 0.15 < process_age() - before < 2
