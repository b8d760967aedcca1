"""What a user gives no decay by name: it gets none, the rest keeps the base, and a mistake is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.params.test_untuned import Biased

BASE = 0.1
NONE = ["*norm*", "*bias"]


def decay_by_name(model, **options):
    """The decay of each parameter by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups(model, weight_decay=BASE, **options)
    found = {names[id(own)]: group["weight_decay"] for group in groups for own in group["params"]}
    assert found.keys() == set(names.values())
    assert all(group["params"] for group in groups)
    return found


@pytest.mark.parametrize("untuned", ["base", "zero_1d"])
@pytest.mark.parametrize("matrices_apart", [False, True])
def test_what_is_named_gets_none_and_the_rest_keeps_the_base(untuned, matrices_apart):
    model = Biased()
    model.scale = nn.Parameter(torch.ones(64))
    found = decay_by_name(model, no_decay=NONE, untuned=untuned, matrices_apart=matrices_apart)
    for name, decay in found.items():
        free = "norm" in name or name.endswith("bias") or (untuned == "zero_1d" and name == "scale")
        assert decay == (0 if free else BASE), name


def test_zero_is_zero_with_patterns_too():
    found = decay_by_name(Biased(), no_decay="*norm*", untuned="zero")
    assert {name for name, decay in found.items() if decay} == {f"layers.{n}.up.weight" for n in range(3)}


def test_a_bias_that_is_named_does_not_follow_its_matrix():
    found = decay_by_name(Biased(), no_decay="*1.up.bias", follow="bias")
    assert [found[f"layers.{n}.up.bias"] for n in range(3)] == [BASE, 0, BASE]


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_a_matrix_that_is_named_is_not_tuned_and_does_not_decay(apply):
    torch.manual_seed(0)
    model = Biased()
    groups = param_groups(model, weight_decay=BASE, no_decay="layers.1.up.weight", apply=apply)
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    decay = AlphaDecay(model, optimizer, weight_decay=BASE, interval=5, apply=apply)
    before = {name: own.detach().clone() for name, own in model.named_parameters()}
    (model(torch.arange(12)) * 0).backward()
    decay.step()
    optimizer.step()
    assert list(decay.modules) == ["layers.0.up", "layers.2.up"]
    unmoved = {name for name, own in model.named_parameters() if torch.equal(own, before[name])}
    zeros = {name for name, own in before.items() if not own.any()}
    assert unmoved == {"layers.1.up.weight"} | zeros


def test_names_are_those_without_wrappers_and_a_tied_weight_has_several():
    model = Biased()
    model.head = nn.Linear(64, 80, bias=False)
    model.head.weight = model.embed.weight
    wrapped = nn.Sequential(checkpoint_wrapper(model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups(wrapped, weight_decay=BASE, no_decay=["0.head.weight", "0.layers.0.norm.*"])
    free = [names[id(own)] for group in groups if not group["weight_decay"] for own in group["params"]]
    assert sorted(free) == ["embed.weight", "layers.0.norm.bias", "layers.0.norm.weight"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*nrom*", r"'\*nrom\*' matches no parameter, the nearest is 'layers\.0\.norm\.weight'; give globs"),
        ("layers.0.up.bais", r"the nearest is 'layers\.0\.up\.bias'"),
        ("*zzz*", r"'\*zzz\*' matches no parameter; give globs"),
        ("", r"'' matches no parameter; give"),
        (3, "no_decay: found 3, expected globs"),
        (None, "no_decay: found None, expected globs"),
        ("module.*", "without what DDP or torch.compile puts before them"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(pattern, words):
    with pytest.raises(UserError, match=words):
        param_groups(Biased(), weight_decay=BASE, no_decay=["*bias", pattern])


def test_no_matrix_left_is_refused():
    with pytest.raises(UserError, match="no module to tune"):
        param_groups(Biased(), weight_decay=BASE, no_decay="*")
