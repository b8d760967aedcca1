"""Muon on weights that tensor parallelism has cut, before FSDP2 or alone: bit for bit as on whole ones."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from alphadecay_dist import AlphaDecay, UserError, param_groups
from alphadecay_dist.engines.native.dtensor import DTensorSource
from alphadecay_dist.optimizers.muon import ShardedMuon
from alphadecay_dist.optimizers.pair import MuonWithAdamW
from tests.multirank import run_ranks

RATE = 0.02


class Block(nn.Module):
    """Sizes that the meshes do not divide; ``back`` is whole without FSDP2."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(64, 135, bias=False)
        self.down = nn.Linear(135, 67)
        self.back = nn.Linear(67, 64, bias=False)


def cut(model, shape, apart=False):
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    plan |= {"back": ColwiseParallel()} if shape[0] > 1 and not apart else {}
    for block in model:
        parallelize_module(block, mesh["tensor"], plan)
        if shape[0] > 1:
            fully_shard(block, mesh=mesh["data"])
    return model


def gradient_of(parameter, whole):
    """That of a whole weight, as the parameter lies."""
    if not isinstance(parameter, DTensor):
        return whole
    ranks = {rank: rank for rank in range(dist.get_world_size())}
    mine = parameter.to_local().new_empty(parameter.to_local().shape)
    piece = DTensorSource("weight", parameter, ranks).layout.held.get(dist.get_rank())
    if piece is not None:
        piece.index.take(whole, mine.view(-1))
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(mine, mesh, placements, shape=whole.shape, stride=whole.stride())


def trained(model, muon):
    *tuned, rest = param_groups(model, weight_decay=1.0)
    optimizer = MuonWithAdamW(muon(tuned, lr=RATE), torch.optim.AdamW([rest], lr=RATE, foreach=False))
    decay = AlphaDecay(model, optimizer, weight_decay=1.0, interval=2, min_ratio=0.5, max_ratio=3)
    for update in range(4):
        generator = torch.Generator().manual_seed(update)
        for parameter in model.parameters():
            parameter.grad = gradient_of(parameter, torch.randn(parameter.shape, generator=generator))
        decay.step()
        optimizer.step()
    return {name: module.weight_decay for name, module in decay.modules.items()}


def check(shape):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(Block(), Block()))
    whole, model = models[0], cut(models[1], shape)
    expected, found = trained(whole, torch.optim.Muon), trained(model, ShardedMuon)
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(set(found.values())) > 2
    for (name, own), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        full = own.full_tensor() if isinstance(own, DTensor) else own
        torch.testing.assert_close(full.detach(), other.detach(), rtol=0, atol=1e-6, msg=name)
    kinds = [type(own).__name__ for own in model.parameters()]
    assert ("Parameter" in kinds) == (shape[0] == 1), kinds


@pytest.mark.ranks
@pytest.mark.parametrize("shape", [(1, 2), (2, 2), pytest.param((1, 3), marks=pytest.mark.long)], ids=str)
def test_pieces_of_tensor_parallelism_are_updated_as_the_whole(shape):
    run_ranks(check, shape[0] * shape[1], shape)


def check_apart():
    model = cut(nn.Sequential(Block()), (2, 2), apart=True)
    optimizer = ShardedMuon([own for own in model.parameters() if own.ndim == 2], lr=RATE)
    for parameter in model.parameters():
        parameter.grad = gradient_of(parameter, torch.ones(parameter.shape))
    words = r"rank 0 has '0\.2: mesh of ranks \[0, 2\]', rank 1 '0\.2: mesh of ranks \[1, 3\]'; shard"
    with pytest.raises(UserError, match=words):
        optimizer.step()


@pytest.mark.ranks
def test_meshes_of_different_ranks_are_refused_on_all():
    run_ranks(check_apart, 4, timeout=60)
