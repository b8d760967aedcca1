"""A checkpoint written beside training holds what was there when it was begun, and is whole or nothing."""

from __future__ import annotations

import threading
import time

import pytest

from alphadecay_dist.checkpoint import writer
from alphadecay_dist.checkpoint.background import BackgroundSave
from alphadecay_dist.checkpoint.manifest import MANIFEST
from alphadecay_dist.checkpoint.random_state import random_state, set_random_state
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.errors import RunError
from tests.checkpoint.layouts import LAYOUTS, NUMBERS, VALUES, fill_the_disk, save, state_of, steps_in
from tests.checkpoint.ranks import on_ranks


@pytest.fixture
def held(monkeypatch):
    """Lets no shard be written before it is set."""
    write_shard, event = writer.write_shard, threading.Event()

    def wait(*args):
        assert event.wait(60)
        return write_shard(*args)

    monkeypatch.setattr(writer, "write_shard", wait)
    return event


def begin(root, step, layout="flat", world_size=2):
    """A background save on every rank, and the states that they are of."""

    def work(ranks):
        state = state_of(layout, ranks.rank, world_size)
        state.put(VALUES, dict(NUMBERS))
        content = {"tokens": step * 10}
        saved = BackgroundSave(root, step, engine_state=state, layout=layout, state=content, ranks=ranks)
        return saved, state, content

    return on_ranks(world_size, work)


def complete(begun, keep=0):
    on_ranks(len(begun), lambda ranks: begun[ranks.rank][0].complete(keep))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_byte_for_byte_the_checkpoint_of_the_moment_it_was_begun(tmp_path, held, layout):
    before = random_state()
    begun = begin(tmp_path / "beside", 7, layout)
    for saved, state, content in begun:  # training goes on
        assert not saved.written
        for part in state.parts():
            part.values.zero_()
        state.numbers = {}
        content["tokens"] = 0
    held.set()
    complete(begun)
    assert all(saved.written for saved, _, _ in begun)
    set_random_state(before)
    alone = save(tmp_path / "alone", 7, layout)
    found = contents(newest(tmp_path / "beside").folder)
    assert found == contents(alone)
    assert not newest(tmp_path / "beside").faults()


def test_before_it_is_completed_the_one_before_counts(tmp_path, held):
    first = save_first(tmp_path, held)
    begun = begin(tmp_path, 2)
    assert newest(tmp_path).folder == first
    held.set()
    while not all(saved.written for saved, _, _ in begun):
        time.sleep(0.01)
    assert newest(tmp_path).folder == first
    assert not (tmp_path / "step-00000002" / MANIFEST).exists()
    complete(begun, keep=1)
    assert steps_in(tmp_path) == [2]


def save_first(root, held):
    held.set()
    folder = save(root, 1)
    held.clear()
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_one_line_on_every_rank_and_harms_no_whole_checkpoint(tmp_path, monkeypatch, rank):
    whole = save(tmp_path, 1)
    fill_the_disk(monkeypatch, rank)
    begun, lines = begin(tmp_path, 2), {}

    def work(ranks):
        with pytest.raises(
            RunError, match="step-00000002: the checkpoint cannot be written: No space"
        ) as line:
            begun[ranks.rank][0].complete(1)
        lines[ranks.rank] = str(line.value)

    on_ranks(2, work)
    assert lines[1 - rank] == f"rank {rank}: {lines[rank]}"
    assert steps_in(tmp_path) == [1]
    assert newest(tmp_path).folder == whole
