"""Save on some ranks, load on others."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from alphadecay_dist.checkpoint import restore
from alphadecay_dist.checkpoint.manifest import (
    from_text,
    to_text,
)
from alphadecay_dist.checkpoint.random_state import random_state, set_random_state
from alphadecay_dist.checkpoint.reader import read
from tests.checkpoint.layouts import (
    KINDS,
    LAYOUTS,
    NUMBERS,
    SHAPES,
    VALUES,
    load,
    save,
)
from tests.checkpoint.ranks import cut


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("world_size", "other"), [(1, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("other_layout", LAYOUTS)
def test_what_some_ranks_saved_others_load_exactly(tmp_path, layout, world_size, other, other_layout):
    folder = save(tmp_path, 7, layout, world_size)
    for state in load(read(folder), other_layout, other):
        parts = state.parts()
        assert {part.kind for part in parts} in (set(KINDS), set())
        for part in parts:
            assert torch.equal(part.values, cut(VALUES[part.kind][part.name], part.index))
        assert state.numbers == NUMBERS
        assert state.published == 7


def test_a_checkpoint_tells_what_it_is(tmp_path):
    checkpoint = read(save(tmp_path, 30, "rows", 2))
    manifest = checkpoint.manifest
    assert (manifest.step, manifest.world_size, manifest.engine, manifest.scalars) == (30, 2, "rows", NUMBERS)
    assert {"torch", "safetensors"} <= set(manifest.versions)
    assert set(manifest.files) == {"state.json", *(f"shards/rank-0000{rank}.safetensors" for rank in (0, 1))}
    names = [tensor.name for tensor in manifest.tensors]
    assert names == [*SHAPES] * 3, "in the model's order, a kind after the other"
    assert checkpoint.state() == {"tokens": 300}
    assert (tmp_path / "latest").read_text() == "step-00000030\n"
    stored = restore.stored_weights(checkpoint)
    assert [*stored] == [*SHAPES]
    assert all(torch.equal(w.read(), VALUES["weight"][name]) for name, w in stored.items())
    assert from_text(to_text(manifest)) == manifest


def test_before_the_first_step_there_are_weights_alone(tmp_path):
    folder = save(tmp_path, 0, values={"weight": VALUES["weight"]}, numbers={})
    for state in load(read(folder), "rows", 3):
        assert {part.kind for part in state.parts()} <= {"weight"}
        assert state.numbers == {}


@pytest.mark.parametrize("world_size", [1, 2])
def test_replicas_are_saved_once(tmp_path, world_size):
    checkpoint = read(save(tmp_path, layout="whole", world_size=world_size))
    assert all(len(tensor.pieces) == 1 for tensor in checkpoint.manifest.tensors)


def test_random_generators_go_on(tmp_path):
    states = random_state()
    drawn = (random.random(), numpy.random.random(), torch.rand(3))
    set_random_state(states)
    again = (random.random(), numpy.random.random(), torch.rand(3))
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])
    folder = save(tmp_path, world_size=1)
    expected = torch.rand(3)
    load(read(folder), "rows", 1)
    assert torch.equal(torch.rand(3), expected)
    load(read(folder), "rows", 2)  # another number of ranks has no states of its own
    assert not torch.equal(torch.rand(3), expected)
