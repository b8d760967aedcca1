"""Norms and biases without decay: under every layout, engine and in the trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from alphadecay_dist import AlphaDecay, param_groups
from tests.engines.tiny import engine_of
from tests.multirank import run_ranks
from tests.training.runs import final_weights, tiny_options, train_on

SHAPES = [(64, 172), (61, 67), (5, 3)]


class Biased(nn.Module):
    """Blocks with a bias each, a norm and an embedding, whose sum is the loss."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(64, 64), "norm": nn.LayerNorm(64)}) for _ in range(3)
        )
        self.embed = nn.Embedding(80, 64)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer["norm"](x + layer["up"](x))
        return x.square().mean()


def trained(wrap=lambda model: model, **options):
    """A step whose gradients are zero, so that decays alone act; with which parameters moved."""
    torch.manual_seed(0)
    model = wrap(Biased())
    optimizer = torch.optim.AdamW(
        param_groups(model, weight_decay=0.1, untuned="zero_1d", **options), lr=0.01
    )
    apply = {key: value for key, value in options.items() if key == "apply"}
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=5, **apply)
    loss = model(torch.arange(12))
    (loss * 0).backward()
    before = {name: full(p) for name, p in model.named_parameters()}
    decay.step()
    optimizer.step()
    moved = {name: not torch.equal(full(p), before[name]) for name, p in model.named_parameters()}
    return decay, optimizer, moved


def full(parameter):
    whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return whole.detach().clone()


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_norms_and_biases_stay_and_all_else_decays(apply):
    decay, optimizer, moved = trained(apply=apply)
    assert len(decay.modules) == 3
    for name, decayed in moved.items():
        assert decayed == (not ("bias" in name or "norm" in name)), name
    state, groups = decay.state_dict(), optimizer.state_dict()
    again, other, _ = trained(apply=apply)
    other.load_state_dict(groups)
    again.load_state_dict(state)
    own = [(group["module"], group["weight_decay"]) for group in optimizer.param_groups]
    assert [(group["module"], group["weight_decay"]) for group in other.param_groups] == own
    assert own[-2:] == [("untuned", 0.1), ("untuned", 0.0)]


def test_the_last_group_can_be_split_by_hand():
    model = Biased()
    *tuned, rest = param_groups(model, weight_decay=0.1)
    embedding = [p for p in rest["params"] if p is model.embed.weight]
    others = [p for p in rest["params"] if p is not model.embed.weight]
    groups = [*tuned, {**rest, "params": embedding}, {**rest, "params": others, "weight_decay": 0.02}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=5)
    model(torch.arange(12)).backward()
    decay.step()
    assert [group["weight_decay"] for group in optimizer.param_groups[-2:]] == [0.1, 0.02]


def on_ranks(kind):
    if kind == "fsdp1":
        options = {"use_orig_params": True, "device_id": torch.device("cpu")}
        _, optimizer, _ = trained(lambda model: FullyShardedDataParallel(model, **options))
    else:
        _, optimizer, _ = trained(fully_shard)
    return [(group["module"], len(group["params"])) for group in optimizer.param_groups][-2:]


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:.*FSDP.*")
@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_sharded_matrices_are_told_from_vectors(kind):
    assert run_ranks(on_ranks, 2, kind) == [[("untuned", 1), ("untuned", 9)]] * 2


def zero_groups(stage):
    def groups(model):
        for block in model.layers:
            block.register_parameter("scale", nn.Parameter(torch.ones(7)))
        return param_groups(model, weight_decay=0.1, untuned="zero_1d")

    engine, model, optimizer = engine_of(stage, SHAPES, groups=groups)
    decay = AlphaDecay(model, optimizer, engine=engine, weight_decay=0.1, interval=5)
    engine.backward(engine(torch.ones(2, 172)))
    decay.step()
    engine.step()
    found = engine.optimizer.param_groups if stage else optimizer.param_groups
    return [(group["module"], group["weight_decay"]) for group in found]


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_keeps_both_groups(stage):
    for found in run_ranks(zero_groups, 2, stage):
        assert found[-2:] == [("untuned", 0.1), ("untuned", 0.0)]
        assert len({decay for _, decay in found[:-2]}) == 2


@pytest.mark.launcher
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("stage", "apply"), [pytest.param("3", "groups", marks=pytest.mark.long), ("fsdp2", "premultiply")]
)
def test_a_recipe_decays_no_norms_and_a_resumed_run_goes_on(tmp_path, stage, apply):
    options = tiny_options(
        tmp_path, decay__untuned="zero_1d", decay__apply=apply, train__clip=0.0, train__steps=16
    )
    train_on(2, stage, tmp_path / "whole", options)
    for more in ([*options, "--train.stop_after=9"], options):
        train_on(2, stage, tmp_path / "parts", more)
    whole, parts = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    train_on(2, stage, tmp_path / "base", [*options, "--decay.untuned=base"])
    base = final_weights(tmp_path / "base")
    assert any(not torch.equal(value, base[name]) for name, value in whole.items() if "norm" in name)
