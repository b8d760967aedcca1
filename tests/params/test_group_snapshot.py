"""What a load may do to param groups, as plain dicts."""

from __future__ import annotations

import copy

import pytest
import torch

from alphadecay_dist import UserError
from alphadecay_dist.params.group_snapshot import GroupSnapshot


def groups_of(*names):
    groups = [
        {"params": [], "module": name, "weight_decay": 0.1, "lr": 0.5, "betas": (0.9, 0.999)}
        for name in names
    ]
    groups[-1].update(module="untuned", weight_decay=0.0, lr=0.25)
    return groups


def shared(*names):
    tuned = {"params": [], "module": "tuned", "modules": names, "weight_decay": 0.0}
    return [tuned, {"params": [], "module": "untuned", "weight_decay": 0.1}]


def stamped(groups):
    """As DeepSpeed's universal load does at stage 3."""
    for group in groups:
        group.update({key: value for key, value in groups[0].items() if key != "params"})


def test_what_was_not_overwritten_is_left_as_it_is():
    groups = groups_of("a", "b", "")
    snapshot = GroupSnapshot(groups)
    groups[0].update(weight_decay=0.3, lr=0.1)
    groups[2].update(weight_decay=0.2)
    groups.append({"params": [], "module": "a", "weight_decay": 0.7})
    before = copy.deepcopy(groups)
    assert snapshot.restore(groups) == []
    assert groups == before


def test_groups_that_were_given_the_first_ones_settings_have_their_own_again():
    groups = groups_of("a", "b", "")
    snapshot = GroupSnapshot(groups)
    groups[0].update(weight_decay=0.3, betas=(0.8, 0.9))
    stamped(groups)
    assert snapshot.restore(groups) == ["lr", "module", "weight_decay"]
    assert [group["module"] for group in groups] == ["a", "b", "untuned"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.1, 0.0]
    assert [group["lr"] for group in groups] == [0.5, 0.5, 0.25]
    assert [group["betas"] for group in groups] == [(0.8, 0.9)] * 3, "what all shared is the load's"


def test_of_the_shared_group_too():
    groups = shared("a", "b")
    snapshot = GroupSnapshot(groups)
    stamped(groups)
    assert snapshot.restore(groups) == ["module", "modules", "weight_decay"]
    assert groups == shared("a", "b")


@pytest.mark.parametrize("name", [None, "module.a"])
def test_names_that_are_gone_or_another_models_are_given_back_by_position(name):
    groups = groups_of("a", "b", "")
    snapshot = GroupSnapshot(groups)
    for group in groups:
        del group["module"]
    if name:
        groups[0]["module"] = name
    snapshot.restore(groups)
    assert groups == groups_of("a", "b", "")


@pytest.mark.parametrize("make", [lambda *names: groups_of(*names, ""), shared])
def test_another_order_is_refused(make):
    snapshot = GroupSnapshot(make("a", "b", "c"))
    groups = make("a", "c", "b")
    before = copy.deepcopy(groups)
    with pytest.raises(UserError, match=r"settings of 'c' where 'b' is.*another order"):
        snapshot.restore(groups)
    assert groups == before


def test_fewer_groups_are_refused():
    snapshot = GroupSnapshot(groups_of("a", "b", ""))
    with pytest.raises(UserError, match="found 2 param groups, expected the 3"):
        snapshot.restore(groups_of("a", ""))


def test_a_learning_rate_in_a_tensor_is_not_kept():
    groups = groups_of("a", "b", "")
    rates = [torch.tensor(0.5), torch.tensor(0.5), torch.tensor(0.25)]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    snapshot = GroupSnapshot(groups)
    stamped(groups)
    assert "lr" not in snapshot.restore(groups)


def test_two_groups_that_are_not_tuned_keep_their_own_decays_wherever_they_stand():
    norms, rest = ({"params": [], "module": "untuned", "weight_decay": decay} for decay in (0.0, 0.1))
    groups = [norms, rest, *groups_of("a", "")[:1]]
    snapshot = GroupSnapshot(groups)
    stamped(groups)
    snapshot.restore(groups)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1, 0.1]
    assert [group["module"] for group in groups] == ["untuned", "untuned", "a"]


def test_a_decay_in_a_tensor_is_each_groups_own_again():
    """The load leaves the first group's tensor in all; a group without one has its number."""
    groups = groups_of("a", "b", "")
    for group in groups[:2]:
        group["weight_decay"] = torch.tensor(group["weight_decay"])
    snapshot = GroupSnapshot(groups)
    groups[0]["weight_decay"].fill_(0.3)
    stamped(groups)
    snapshot.restore(groups)
    first, second, rest = (group["weight_decay"] for group in groups)
    assert (first, second, rest) == (torch.tensor(0.3), torch.tensor(0.1), 0.0)
    second.fill_(0.2)
    assert first == torch.tensor(0.3)


def test_what_is_a_tensor_in_one_group_alone_is_not_taken_from_it():
    groups = groups_of("a", "")
    groups[0]["lr"] = torch.tensor(0.5)
    snapshot = GroupSnapshot(groups)
    del groups[0]["module"]
    snapshot.restore(groups)
    assert groups[0]["lr"] == torch.tensor(0.5)


def test_factors_of_a_host_are_given_back():
    groups = [group | {"wd_mult": 1.0} for group in groups_of("a", "b", "")]
    snapshot = GroupSnapshot(groups)
    groups[0]["wd_mult"] = 3.0
    stamped(groups)
    snapshot.restore(groups)
    assert [group["wd_mult"] for group in groups] == [3.0, 1.0, 1.0]
