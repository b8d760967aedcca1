"""The state of Muon on pieces: in torch's checkpoints, and from and to torch.optim.Muon's on the whole."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from alphadecay_dist.optimizers.muon import ShardedMuon
from tests.multirank import run_ranks
from tests.optimizers.test_muon import RATE, Matrices, give_gradients, groups_of, sharded

WHOLE = StateDictOptions(full_state_dict=True)


def step(models, optimizers, update):
    for model, optimizer in zip(models, optimizers, strict=True):
        give_gradients(model, update)
        optimizer.step()


def check_from_torch_and_back():
    models = reference, model = Matrices(), sharded(1)
    expected = torch.optim.Muon(groups_of(reference, True), lr=RATE)
    step([reference], [expected], 1)
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        own.data.copy_(whole_as(own, other.detach()))
    found = ShardedMuon(groups_of(model, True), lr=RATE)
    found.load_state_dict(copy.deepcopy(expected.state_dict()))
    step(models, (expected, found), 2)
    require_equal(model, reference)
    assert all(isinstance(found.state[own]["momentum_buffer"], DTensor) for own in model.parameters())

    again = torch.optim.Muon(groups_of(reference, True), lr=RATE)
    set_optimizer_state_dict(reference, again, get_optimizer_state_dict(model, found, options=WHOLE))
    step(models, (again, found), 4)
    require_equal(model, reference)


def whole_as(own, value):
    return distribute_tensor(value, own.device_mesh, own.placements)


def require_equal(model, reference):
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(own.full_tensor(), other.detach())


@pytest.mark.ranks
def test_torchs_state_goes_on_in_pieces_and_that_goes_on_whole():
    run_ranks(check_from_torch_and_back, 2)


def check_checkpoint(folder):
    model = sharded(1)
    optimizer = ShardedMuon(groups_of(model, True), lr=RATE)
    step([model], [optimizer], 1)
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(saved, checkpoint_id=folder)
    step([model], [optimizer], 2)

    other = sharded(1)
    resumed = ShardedMuon(groups_of(other, True), lr=1.0)
    loaded = {"model": other.state_dict(), "optimizer": get_optimizer_state_dict(other, resumed)}
    dcp.load(loaded, checkpoint_id=folder)
    other.load_state_dict(loaded["model"])
    set_optimizer_state_dict(other, resumed, loaded["optimizer"])
    assert resumed.param_groups[0]["lr"] == RATE
    step([other], [resumed], 2)
    for own, one in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own.to_local(), one.to_local())
    dist.barrier()


@pytest.mark.ranks
def test_torchs_distributed_checkpoints_hold_it(tmp_path):
    run_ranks(check_checkpoint, 2, str(tmp_path / "checkpoint"))
