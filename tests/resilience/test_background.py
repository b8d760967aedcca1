"""Saving beside training: the run is the one that waits for its saves, whatever comes between."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file

import train
from alphadecay_dist.checkpoint import writer
from alphadecay_dist.checkpoint.manifest import MANIFEST
from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.engines.native.training import TorchTraining
from alphadecay_dist.engines.zero.training import ZeroTraining
from alphadecay_dist.training.outputs.run_files import read_status
from tests.multirank import run_ranks
from tests.resilience.poison import loss_plus_nan, poisoned
from tests.resilience.signals import signalled
from tests.resilience.sizes import SIZES
from tests.training.runs import argv_of, left_behind, same_weights, tiny_options, train_on, without_times

pytestmark = pytest.mark.kills


def options_of(folder, **changes):
    return tiny_options(folder, checkpoint__background=True, **(SIZES | changes))


def held(argv, until, act, step=5):
    """Train; a step's shards are written when ``until`` updates are made, then ``act`` is called.

    All ranks have written then; so the next update hears of it, and the one after finds the checkpoint whole.
    """
    write_shard, event, updates, folders = writer.write_shard, threading.Event(), 0, []

    def wait(folder, *args):
        if folder.name == f"step-{step:08d}":
            folders.append(folder)
            assert event.wait(60)
        return write_shard(folder, *args)

    def counted(original):
        def made(self, *args):
            nonlocal updates
            done = original(self, *args)
            updates += 1
            if updates == until:
                event.set()
                act()
                for thread in threading.enumerate():
                    if thread.name == "checkpoint":
                        thread.join()
            for folder in folders:
                assert (folder / MANIFEST).exists() == (updates > until + 1)
            return done

        return made

    writer.write_shard = wait
    for owner in (ZeroTraining, TorchTraining):
        owner.step = counted(owner.step)
    return train.main(argv)


def nothing():
    """Goes on."""


def same_checkpoints(left, right):
    """The tensors of every checkpoint bit for bit, and what else there is but the config.

    The states of generators that nobody seeds are a process's own: the files are compared as they are in
    tests/checkpoint/test_background.py.
    """
    folders = [sorted((run / "checkpoints").glob("step-*")) for run in (left, right)]
    assert [folder.name for folder in folders[0]] == [folder.name for folder in folders[1]]
    for one, other in zip(*folders, strict=True):
        assert read(one).manifest.tensors == read(other).manifest.tensors
        states = [json.loads((folder / "state.json").read_text()) for folder in (one, other)]
        for state in states:
            state["inputs"].pop("command")  # which names the folders of its own test
        assert states[0].pop("config") != states[1].pop("config")
        assert states[0] == states[1]
        for shard in (one / "shards").iterdir():
            tensors = [load_file(folder / "shards" / shard.name) for folder in (one, other)]
            assert tensors[0].keys() == tensors[1].keys()
            seeded = [key for key in tensors[0] if key not in ("random/python", "random/numpy")]
            assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in seeded)
    return True


@pytest.mark.parametrize("engine", ["3", "fsdp2"])
def test_updates_go_on_while_a_save_is_held_and_change_nothing_of_it(tmp_path, whole, engine):
    output, expected = whole(engine)
    argv = argv_of(engine, tmp_path / "run", options_of(tmp_path))
    assert run_ranks(held, 2, argv, 8, nothing) == [0, 0]
    assert without_times(left_behind(tmp_path / "run")) == without_times(expected)
    assert same_checkpoints(tmp_path / "run", output)


def check_goes_on(tmp_path, engine, whole, **changes):
    output, expected = whole(engine)
    resumed = train_on(2, engine, tmp_path / "run", options_of(tmp_path, **changes))
    assert without_times(resumed) == without_times(expected)
    assert same_weights(tmp_path / "run", output)
    assert read_status(tmp_path / "run")["state"] == "finished"


def killed():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_killed_before_a_save_is_whole_goes_on_from_the_one_before(tmp_path, whole):
    argv = argv_of("3", tmp_path / "run", options_of(tmp_path))
    with pytest.raises(AssertionError, match="died with exit code -9"):
        run_ranks(held, 2, argv, 11, killed, 10)
    assert newest(tmp_path / "run" / "checkpoints").manifest.step == 5
    assert (tmp_path / "run" / "checkpoints" / "step-00000010").is_dir()
    check_goes_on(tmp_path, "3", whole)


def signalled_while_held(argv):
    write_shard = writer.write_shard

    def slow(folder, *args):
        threading.Event().wait(3 if folder.name == "step-00000005" else 0)
        return write_shard(folder, *args)

    writer.write_shard = slow
    return signalled(argv, "gradients", 6, [signal.SIGTERM])


def test_a_stop_waits_for_the_save_that_is_under_way(tmp_path, whole):
    argv = argv_of("2", tmp_path / "run", options_of(tmp_path))
    assert run_ranks(signalled_while_held, 2, argv) == [75, 75]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [int(folder.name[-2:]) for folder in sorted(checkpoints.glob("step-*"))] == [5, 6]
    assert all(not read(folder).faults() for folder in checkpoints.glob("step-*"))
    assert read_status(tmp_path / "run")["step"] == newest(checkpoints).manifest.step == 6
    check_goes_on(tmp_path, "2", whole)


def failing(argv, rank, step):
    write_shard = writer.write_shard

    def fails(folder, own, *args):
        if own == rank and folder.name == f"step-{step:08d}":
            raise OSError(28, os.strerror(28))
        return write_shard(folder, own, *args)

    writer.write_shard = fails
    return train.main(argv)


@pytest.mark.parametrize(("rank", "step"), [(1, 10), (0, 12)], ids=["between", "last"])
def test_a_disk_that_is_full_for_one_rank_is_one_error_of_all(tmp_path, whole, rank, step):
    argv = argv_of("2", tmp_path / "run", options_of(tmp_path))
    assert run_ranks(failing, 2, argv, rank, step) == [1, 1]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not (checkpoints / f"step-{step:08d}").exists()
    assert newest(checkpoints).manifest.step == (5 if step == 10 else 10)
    assert read_status(tmp_path / "run")["state"] == "failed"
    check_goes_on(tmp_path, "2", whole)


def test_a_rollback_goes_to_the_save_that_is_under_way(tmp_path):
    runs = {}
    for background in (False, True):
        output = tmp_path / str(background)
        changes = {"train__on_nonfinite": "rollback", "checkpoint__background": background}
        argv = argv_of("ddp", output, tiny_options(tmp_path, **SIZES, **changes))
        assert run_ranks(poisoned, 2, argv, loss_plus_nan, (6,)) == [0, 0]
        runs[background] = without_times(left_behind(output))
    assert runs[True] == runs[False]
    assert same_checkpoints(tmp_path / "True", tmp_path / "False")
