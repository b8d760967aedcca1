"""Refreshes of models whose weights have several matrices: fused ones, stacks of experts, convolutions."""

from __future__ import annotations

import math

import pytest
import torch

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.spectral import analyze
from tests.controllers import SETTINGS, decays_in, mapped, refreshed
from tests.multirank import run_ranks


class Mixed(torch.nn.Module):
    """Blocks with every kind of weight: fused, attention, experts, convolution, plain."""

    def __init__(self):
        super().__init__()
        block = torch.nn.Module()
        block.qkv_proj = torch.nn.Linear(60, 180)
        block.attn = torch.nn.MultiheadAttention(64, 4)
        block.experts = torch.nn.Module()
        block.experts.gate_up_proj = torch.nn.Parameter(torch.randn(3, 120, 70))
        block.experts.down_proj = torch.nn.Parameter(torch.randn(3, 70, 60))
        block.conv1 = torch.nn.Conv2d(20, 24, 3)
        block.bn1 = torch.nn.BatchNorm2d(24)
        block.plain = torch.nn.Linear(80, 60)
        self.layers = torch.nn.ModuleList([block])


def test_fused_weights_stacks_and_convolutions_get_the_mean_of_their_parts():
    torch.manual_seed(0)
    model = Mixed()
    block = model.layers[0]
    with torch.no_grad():
        block.qkv_proj.weight[60:120] *= torch.rand(60, 1) ** 3
        block.experts.down_proj[1].zero_()
    modules, decays = refreshed(model)
    qkv, experts = block.qkv_proj.weight, block.experts
    expected = {f"layers.0.qkv_proj.{part}": qkv[60 * i : 60 * i + 60] for i, part in enumerate("qkv")}
    for i, part in enumerate("qkv"):
        rows = block.attn.in_proj_weight[64 * i : 64 * i + 64]
        expected[f"layers.0.attn.in_proj_weight.{part}"] = rows
    for expert in range(3):
        for i, part in enumerate(("gate", "up")):
            rows = experts.gate_up_proj[expert, 60 * i : 60 * i + 60]
            expected[f"layers.0.experts.gate_up_proj.{expert}.{part}"] = rows
        expected[f"layers.0.experts.down_proj.{expert}"] = experts.down_proj[expert]
    for name in ("attn.out_proj", "conv1", "plain"):
        expected[f"layers.0.{name}"] = model.get_submodule(f"layers.0.{name}").weight
    alphas = {name: analyze(weight.detach()).alpha for name, weight in expected.items()}
    found = {}
    for name, module in modules.items():
        found |= module.parts or {name: module}
    assert {name: part.alpha for name, part in found.items()} == pytest.approx(alphas, abs=1e-6)
    by_hand = mapped({name: part.alpha for name, part in found.items() if part.alpha})
    by_hand["layers.0.experts.down_proj.1"] = 0.1
    assert {name: part.weight_decay for name, part in found.items()} == by_hand
    for name, module in modules.items():
        own = [by_hand[part] for part in module.parts or [name]]
        assert decays[name] == module.weight_decay == pytest.approx(sum(own) / len(own))
    assert modules["layers.0.experts.down_proj"].status == "mixed"
    assert modules["layers.0.experts.down_proj"].parts["layers.0.experts.down_proj.1"].status == "zero"
    assert modules["layers.0.qkv_proj"].status == "assigned"


def test_normalized_decays_of_stacks_and_fused_weights_have_the_base_decay_as_their_mean():
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    AlphaDecay(model, optimizer, **SETTINGS, normalize="mean").refresh()
    tuned = [group for group in optimizer.param_groups if group["module"] != "untuned"]
    sizes = [group["params"][0].numel() for group in tuned]
    total = math.fsum(s * group["weight_decay"] for s, group in zip(sizes, tuned, strict=True))
    assert total / sum(sizes) == pytest.approx(0.1)


def test_a_batchnorm_follows_its_convolution_where_asked():
    model = Mixed()
    groups = param_groups(model, weight_decay=0.1, follow=["batchnorm"])
    conv = next(group for group in groups if group["module"] == "layers.0.conv1")
    bn = model.layers[0].bn1
    assert [id(p) for p in conv["params"]] == [
        id(p) for p in (model.layers[0].conv1.weight, *bn.parameters())
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    AlphaDecay(model, optimizer, **SETTINGS).refresh()
    assert decays_in(optimizer)["layers.0.conv1"] not in (0.1, decays_in(optimizer)["untuned"])
    plain = param_groups(model, weight_decay=0.1)
    assert sum(len(group["params"]) for group in plain) == sum(len(group["params"]) for group in groups)


def check_parts():
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    refresh = AlphaDecay(model, optimizer, **SETTINGS).refresh()
    owners = {part.owner for module in refresh.modules.values() for part in module.parts.values()}
    assert owners == {0, 1, 2}
    return {name: (m.alpha, m.weight_decay, m.status) for name, m in refresh.modules.items()}


@pytest.mark.ranks
def test_experts_have_owners_of_their_own_and_every_rank_gets_the_same():
    found = run_ranks(check_parts, 3)
    torch.manual_seed(0)
    alone, _ = refreshed(Mixed())
    assert found == [{name: (m.alpha, m.weight_decay, m.status) for name, m in alone.items()}] * 3
