"""Decays as numbers, in tensors, and under a host that writes them again after every update."""

from __future__ import annotations

import pytest
import torch

from alphadecay_dist import UserError
from alphadecay_dist.params.group_decay import TensorDecays, decay_of, set_decay


def group_of(decay, **keys):
    return {"params": [], "module": "layers.0.up", "weight_decay": decay, **keys}


def test_a_number_stays_a_number():
    group = group_of(0.1)
    set_decay(group, 0.3, base=0.1)
    assert group == group_of(0.3)
    assert decay_of(group) == 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_is_written_in_place(dtype):
    tensor = torch.tensor(0.1, dtype=dtype)
    group = group_of(tensor)
    set_decay(group, 0.3, base=0.1)
    assert group["weight_decay"] is tensor
    assert decay_of(group) == pytest.approx(0.3)
    assert tensor.dtype == dtype


def test_a_tensor_that_holds_no_fraction_is_refused():
    with pytest.raises(UserError, match=r"weight_decay: found a tensor of torch\.int64"):
        set_decay(group_of(torch.tensor(0)), 0.3, base=0.1)


class Scheduler:
    """After each update weight_decay = base * wd_mult, with a base that may follow a schedule."""

    def __init__(self, groups, base):
        self.groups, self.base = groups, base

    def step(self):
        for group in self.groups:
            group["weight_decay"] = self.base * group.get("wd_mult", 1.0)


def test_a_host_that_writes_the_decay_again_writes_ours():
    group, other = group_of(0.1, wd_mult=1.0), group_of(0.0, module="untuned", wd_mult=0.0)
    host = Scheduler([group, other], base=0.1)
    set_decay(group, 0.25, base=0.1)
    assert decay_of(group) == 0.25, "before the host's next step"
    host.step()
    assert decay_of(group) == pytest.approx(0.25), "and after it"
    host.base = 0.2
    host.step()
    assert decay_of(group) == pytest.approx(0.5), "the host's schedule goes on"
    set_decay(group, 0.3, base=0.1)
    assert decay_of(group) == pytest.approx(0.6), "in the update of a refresh too"
    host.step()
    assert decay_of(group) == pytest.approx(0.6)
    assert decay_of(other) == 0.0


def test_a_base_of_0_has_no_factor_but_0():
    group = group_of(0.0, wd_mult=1.0)
    set_decay(group, 0.0, base=0.0)
    Scheduler([group], base=0.1).step()
    assert decay_of(group) == 0.0
    with pytest.raises(UserError, match=r"wd_mult: found a decay of 0\.2 with the base decay 0"):
        set_decay(group, 0.2, base=0.0)


def test_a_tensor_that_a_load_replaced_by_a_number_is_there_again():
    tensor = torch.tensor(0.1)
    groups = [group_of(tensor), group_of(0.1)]
    kept = TensorDecays(groups)
    groups = [group_of(0.25), group_of(0.5)]
    assert kept.keep(groups) == 0
    assert groups[0]["weight_decay"] is tensor
    assert (decay_of(groups[0]), groups[1]["weight_decay"]) == (0.25, 0.5)


def test_another_tensor_is_counted_once():
    kept = TensorDecays([group_of(torch.tensor(0.1)), group_of(0.1)])
    later = [group_of(torch.tensor(0.2)), group_of(0.1), group_of(torch.tensor(0.3))]
    assert [kept.keep(later), kept.keep(later)] == [1, 0]
    assert later[0]["weight_decay"] == torch.tensor(0.2)


def test_one_tensor_for_several_groups_is_refused():
    tensor = torch.tensor(0.1)
    with pytest.raises(UserError, match=r"one tensor in several.*'layers\.0\.up' among them"):
        TensorDecays([group_of(tensor), group_of(tensor)])
