from __future__ import annotations

import json
import threading

import pytest

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.data.prefetch import Prefetched
from tests.training.corpora import numbered, write_files
from tests.training.sequences import data_of, sequences_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("data"), [numbered(50, 0)])


def test_the_updates_and_states_are_those_of_the_data_itself(folder):
    plain, ahead = data_of(folder, pack=True), Prefetched(data_of(folder, pack=True), pin=False)
    for _ in range(10):
        assert ahead.state() == plain.state()
        assert sequences_of(ahead.next_update()) == sequences_of(plain.next_update())


def test_a_state_loaded_while_reading_ahead_is_gone_on_from(folder):
    plain, ahead = data_of(folder), Prefetched(data_of(folder), pin=False)
    for _ in range(3):
        plain.next_update()
        ahead.next_update()
    state = json.loads(json.dumps(plain.state()))
    ahead.next_update()
    ahead.load(state)
    assert sequences_of(ahead.next_update()) == sequences_of(plain.next_update())


def test_the_next_update_is_read_before_it_is_asked_for(folder):
    data, read = data_of(folder), threading.Event()
    ahead = Prefetched(data, pin=False)
    ahead.next_update()
    original = data.next_update

    def tell():
        read.set()
        return original()

    data.next_update = tell
    ahead.next_update()  # starts the reading of another one
    assert read.wait(10)


def test_what_cannot_be_read_is_an_error_of_the_update_that_needs_it(folder):
    data = data_of(folder)
    left, original = [1, 2], data.next_update

    def two_updates():
        if not left:
            raise UserError("data: gone")
        left.pop()
        return original()

    data.next_update = two_updates
    ahead = Prefetched(data, pin=False)
    ahead.next_update()
    ahead.next_update()
    with pytest.raises(UserError, match="gone"):
        ahead.next_update()
