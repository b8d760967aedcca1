"""The trainer's state in a checkpoint: what cannot be is one line."""

from __future__ import annotations

import dataclasses
import json

import pytest

from alphadecay_dist.checkpoint.reader import read
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import Config, TrainConfig
from alphadecay_dist.training.state import saved_state
from tests.checkpoint.layouts import save_with_state
from tests.training.states import INPUTS

CONFIG = Config(train=TrainConfig(dtype="float32"))
STATE = {
    "config": dataclasses.asdict(CONFIG),
    "tokens": 300,
    "lanes": {"0": {"taken": 1}},
    "evaluation_owed": True,
    "bad_updates": {"total": 2, "in_a_row": 1},
    "decay": {"alphadecay": "{}"},
    "inputs": dataclasses.asdict(INPUTS),
}


def state_of(folder, state):
    return saved_state(read(save_with_state(folder, json.dumps(state).encode())))


def test_a_state_comes_back_as_it_was(tmp_path):
    found = state_of(tmp_path, STATE)
    assert found.config == CONFIG
    assert dataclasses.asdict(found) == STATE | {"config": dataclasses.asdict(CONFIG)}


def test_a_state_of_before_command_and_versions_were_kept_has_none(tmp_path):
    inputs = {key: value for key, value in STATE["inputs"].items() if key not in ("command", "versions")}
    found = state_of(tmp_path, {**STATE, "inputs": inputs}).inputs
    assert (found.command, found.versions) == ((), {})


def test_a_state_of_before_inputs_were_kept_has_none(tmp_path):
    assert state_of(tmp_path, {key: value for key, value in STATE.items() if key != "inputs"}).inputs is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": None}, "has None as config"),
        ({"config": {"train": {"stepz": 3}}}, "unknown key train.stepz"),
        ({"config": {"train": {"steps": -1}}}, "train.steps: found -1"),
        ({"config": {}}, "'auto' as train.dtype"),
        ({"tokens": True}, "has True as tokens"),
        ({"lanes": []}, r"has \[\] as lanes"),
        ({"bad_updates": 3}, "has 3 as total"),
        ({"decay": {"alphadecay": {}}}, "in decay"),
        ({"inputs": 3}, "has 3 as inputs"),
        ({"inputs": {}}, "has None as engine"),
        ({"inputs": {**STATE["inputs"], "data": {"data.source": {"a": {"bytes": -1}}}}}, "has -1 as bytes"),
        ({"inputs": {**STATE["inputs"], "changes": [{}]}}, "has None as step"),
        (
            {"inputs": {**STATE["inputs"], "command": "train.py"}},
            "has 'train.py' as command, expected a list",
        ),
        ({"inputs": {**STATE["inputs"], "command": [1]}}, "has 1 in command, expected a text"),
        ({"inputs": {**STATE["inputs"], "versions": {"torch": 2}}}, "has 2 in versions"),
    ],
)
def test_a_state_that_cannot_be_is_one_line(tmp_path, change, words):
    with pytest.raises(
        UserError, match=f"state.json is not what this trainer saves: .*{words}.*; give another"
    ):
        state_of(tmp_path, {**STATE, **change})


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_one_line_too(tmp_path, content):
    with pytest.raises(UserError, match=r"state.json is not what this trainer saves"):
        saved_state(read(save_with_state(tmp_path, content)))
