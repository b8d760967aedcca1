"""Which weights get Muon, and which of these are cut by heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alphadecay_dist import UserError, param_groups
from alphadecay_dist.optimizers.division import chosen, divided, head_cuts
from alphadecay_dist.optimizers.registry import muon_for
from alphadecay_dist.optimizers.settings import MuonSettings
from alphadecay_dist.params.inventory import tuned_weights


class Attention(nn.Module):
    """Four heads of 16, two of them for keys and values; or all in one weight."""

    def __init__(self, fused):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = 4, 2, 16
        if fused:
            self.num_key_value_heads = 4
            self.qkv_proj = nn.Linear(64, 192, bias=False)
        else:
            self.q_proj = nn.Linear(64, 64)
            self.k_proj, self.v_proj = (nn.Linear(64, 32 * 2, bias=False) for _ in range(2))
            self.num_key_value_heads = 4
        self.o_proj = nn.Linear(64, 64, bias=False)


class Model(nn.Module):
    def __init__(self, fused=False):
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        block = {"attn": Attention(fused), "up": nn.Linear(64, 128), "conv": nn.Conv2d(64, 64, 3)}
        self.layers = nn.ModuleList([nn.ModuleDict(block)])
        self.head = nn.Linear(64, 100)


NAMES = [f"layers.0.{name}" for name in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "up")]


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_matrices_get_muon_and_all_else_adamw(apply):
    model = Model()
    groups = param_groups(model, weight_decay=0.3, apply=apply)
    division = divided(model, groups, MuonSettings(lr=0.1, muon_lr=0.05))
    assert [weight.name for weight in division.weights] == NAMES
    muon = [own for group in division.muon for own in group["params"]]
    assert [tuple(own.shape) for own in muon] == [(64, 64)] * 4 + [(128, 64)]
    everything = [own for group in (*division.muon, *division.adamw) for own in group["params"]]
    assert len(everything) == len({*everything}) == len([*model.parameters()])
    assert {group["lr_ratio"] for group in division.muon} == {0.5}
    assert not any("lr_ratio" in group for group in division.adamw)
    if apply == "premultiply":
        assert [group["modules"] for group in division.muon] == [tuple(NAMES)]
        assert [group["modules"] for group in division.adamw[:1]] == [("layers.0.conv",)]
    else:
        assert [group["module"] for group in division.muon] == NAMES
        assert division.adamw[0]["module"] == "layers.0.conv"


def test_patterns_leave_the_other_matrices_to_adamw():
    model = Model()
    groups = param_groups(model, weight_decay=0.3, apply="premultiply")
    division = divided(model, groups, MuonSettings(lr=0.1, modules=("*.up", "*.v_proj")))
    assert [group["modules"] for group in division.muon] == [(NAMES[2], NAMES[4])]
    assert division.adamw[0]["modules"] == (*NAMES[:2], NAMES[3], "layers.0.conv")
    for pattern in ("*.nothing", "*.conv"):
        with pytest.raises(
            UserError, match="matches no tuned matrix; give a glob over names such as 'layers"
        ):
            divided(model, groups, MuonSettings(lr=0.1, modules=(pattern,)))
    with pytest.raises(UserError, match="found no tuned matrix for Muon"):
        chosen([], None)


@pytest.mark.parametrize(
    ("fused", "heads", "cut"),
    [
        (False, ("q", "o"), {"q_proj": (0, 4), "o_proj": (1, 4)}),
        (False, ("v",), {"v_proj": (0, 4)}),
        (True, ("q", "k", "v"), {"qkv_proj": (0, 12)}),
        (True, ("q", "k", "v", "o"), {"qkv_proj": (0, 12), "o_proj": (1, 4)}),
        (True, (), {}),
    ],
)
def test_heads_are_rows_of_q_k_v_and_columns_of_o(fused, heads, cut):
    model = Model(fused)
    found = head_cuts(chosen(tuned_weights(model), None), model, heads)
    assert {name.rpartition(".")[2]: (own.axis, len(own.names)) for name, own in found.items()} == cut
    assert {own.sizes[0] for own in found.values()} <= {16}


def test_heads_that_are_not_there_are_refused():
    weights = chosen(tuned_weights(Model(fused=True)), None)
    with pytest.raises(UserError, match=r"muon_heads: found q, but no weight of Muon's is q alone"):
        head_cuts(weights, Model(fused=True), ("q",))
    unknown = Model()
    del unknown.layers[0]["attn"].num_heads
    with pytest.raises(UserError, match="q_proj cannot be cut by heads: neither its module nor a config"):
        head_cuts(chosen(tuned_weights(unknown), None), unknown, ("q",))


def test_an_engine_without_muon_is_refused():
    model = Model()
    with pytest.raises(UserError, match="found 'muon' with the engine toy, expected one of ddp, fsdp2, deep"):
        muon_for("toy", {}, model, param_groups(model, weight_decay=0.1), MuonSettings(lr=0.1))


def test_without_zero_deepspeed_gets_torchs_muon():
    model = Model()
    groups = param_groups(model, weight_decay=0.1)
    found = muon_for("deepspeed", {"zero_optimization": {"stage": 0}}, model, groups, MuonSettings(lr=0.1))
    assert type(found._muon) is torch.optim.Muon
