"""In whatever form groups keep decays, training is that of plain numbers; compiled, or under a host too."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.engines.tiny import TUNABLE, Uneven

BASE = 1.0  # strong enough for a few updates to show
FORMS = {"for_loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
UPDATES, INTERVAL = 12, 4
THREE = TUNABLE[:3]  # the decay of one is between the ends, and changes with every refresh


def built(form="foreach", tensors=False, apply="groups", shapes=TUNABLE, **keys):
    torch.manual_seed(0)
    model = Uneven(shapes)
    groups = param_groups(model, weight_decay=BASE, apply=apply)
    for group in groups:
        group.update(keys)
        if tensors:
            group["weight_decay"] = torch.tensor(group["weight_decay"], dtype=torch.float64)
    optimizer = torch.optim.AdamW(groups, lr=1e-2, **FORMS[form])
    decay = AlphaDecay(model, optimizer, weight_decay=BASE, interval=INTERVAL, min_ratio=0.2, apply=apply)
    return model, optimizer, decay


def update(model, optimizer, decay, number):
    optimizer.zero_grad()
    model(torch.randn(2, 172, generator=torch.Generator().manual_seed(number))).backward()
    decay.step()
    optimizer.step()


def trained(run, after=lambda number: None, updates=UPDATES):
    for number in range(updates):
        update(*run, number)
        after(number)
    return {name: p.detach().clone() for name, p in run[0].named_parameters()}


def farthest(found, expected):
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


def decays_of(optimizer):
    return [float(group["weight_decay"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("form", FORMS)
def test_tensors_decay_as_numbers_do(form):
    run = built(form, tensors=True)
    tensors = [group["weight_decay"] for group in run[1].param_groups]
    plain = built(form)
    assert farthest(trained(run), trained(plain)) < 1e-6
    assert all(g["weight_decay"] is t for g, t in zip(run[1].param_groups, tensors, strict=True))
    assert decays_of(run[1]) == pytest.approx(decays_of(plain[1]), abs=1e-6)
    assert len(set(decays_of(plain[1]))) == len(TUNABLE)


@pytest.mark.parametrize(("tensors", "again"), [(True, False), (False, True)])
def test_a_compiled_step_is_compiled_again_for_a_number_alone(tensors, again):
    """torch's AdamW branches on the decay, so that a tensor's value breaks its graph; but none is new."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = built("foreach", tensors, shapes=THREE)
    run[1].step = torch.compile(run[1].step, backend="aot_eager")
    graphs = []
    found = trained(run, lambda number: graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    assert graphs[1] > 0
    assert (graphs[-1] > graphs[1]) == again, "refreshes came before the updates 0, 4 and 8"
    assert farthest(found, trained(built("foreach", shapes=THREE))) < 1e-5


@pytest.mark.parametrize("saved_tensors", [True, False])
def test_a_load_leaves_tensors_that_decays_are_written_into(saved_tensors):
    """torch's load puts what was saved into the groups: numbers, or copies of tensors, which is said."""
    before = built(tensors=saved_tensors)
    whole = trained(built(tensors=saved_tensors))
    trained(before, updates=7)
    file = io.BytesIO()
    torch.save([own.state_dict() for own in before], file)
    file.seek(0)
    fresh = built(tensors=True)
    tensors = [group["weight_decay"] for group in fresh[1].param_groups]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        for own, state in zip(fresh, torch.load(file, weights_only=True), strict=True):
            own.load_state_dict(state)
        held = [group["weight_decay"] for group in fresh[1].param_groups]
        for number in range(7, UPDATES):
            update(*fresh, number)
    said = [str(one.message) for one in found if "another tensor" in str(one.message)]
    assert len(said) == saved_tensors
    assert {own is tensor for own, tensor in zip(held, tensors, strict=True)} == {not saved_tensors}
    assert all(g["weight_decay"] is own for g, own in zip(fresh[1].param_groups, held, strict=True))
    assert farthest(fresh[0].state_dict(), whole) < 1e-6


def test_tensors_survive_a_load_that_takes_the_groups_names():
    run = built(tensors=True)
    update(*run, 0)
    expected = decays_of(run[1])
    state = copy.deepcopy(run[1].state_dict())
    for group in state["param_groups"]:
        group.update({key: value for key, value in state["param_groups"][0].items() if key != "params"})
    run[1].load_state_dict(state)
    with pytest.warns(UserWarning, match="param groups have another tensor as weight_decay"):
        run[2].load_state_dict(run[2].state_dict())
    assert decays_of(run[1]) == expected
    assert len({id(group["weight_decay"]) for group in run[1].param_groups}) == len(expected)


def test_groups_that_share_a_tensor_are_refused():
    model = Uneven(TUNABLE)
    groups = param_groups(model, weight_decay=BASE)
    shared = torch.tensor(BASE)
    for group in groups:
        group["weight_decay"] = shared
    with pytest.raises(UserError, match="weight_decay: found one tensor in several param groups"):
        AlphaDecay(model, torch.optim.AdamW(groups), weight_decay=BASE)


class Scheduler:
    """What Megatron's does after each update: the decay is the base times the group's factor."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, number):
        for group in self.optimizer.param_groups:
            group["weight_decay"] = BASE * group.get("wd_mult", 1.0)


@pytest.mark.parametrize("apply", ["groups", "premultiply"])
def test_under_a_host_that_writes_the_decay_again_weights_are_the_same(apply):
    run, plain = built(apply=apply, wd_mult=1.0), trained(built(apply=apply))
    host = Scheduler(run[1])
    host.step(0)  # as its constructor does
    assert farthest(trained(run, host.step), plain) < 1e-6
    overwritten = built(apply=apply)
    without = trained(overwritten, Scheduler(overwritten[1]).step)
    assert farthest(without, plain) > 1e-3, "without the key the decays would be lost"
