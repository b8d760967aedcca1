"""Decays of bf16 weights without fp32 masters: where they are lost, it is said, with the numbers."""

from __future__ import annotations

import warnings

import pytest
import torch

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.engines.tiny import Uneven

FORMS = {"for_loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
DECAYS = (0.0, 0.1, 0.5)
RATE = 1e-3  # at 3 * 0.5, the largest decay, lr * decay is 0.0015: below 2^-9
UPDATES = 300


def built(decay, form, dtype, apply="groups", rate=RATE):
    torch.manual_seed(0)
    model = Uneven([(64, 60), (50, 64)]).to(dtype)
    optimizer = torch.optim.AdamW(
        param_groups(model, weight_decay=decay, apply=apply), lr=rate, **FORMS[form]
    )
    own = AlphaDecay(model, optimizer, weight_decay=decay, min_ratio=0.5, max_ratio=3, apply=apply)
    return model, optimizer, own


def norm_after(decay, form, dtype=torch.bfloat16):
    """The norm of all weights; their inputs, and so their gradients, are small and random."""
    model, optimizer, own = built(decay, form, dtype)
    for number in range(UPDATES):
        optimizer.zero_grad()
        x = torch.randn(2, 64, generator=torch.Generator().manual_seed(number))
        (model(x.to(dtype)) * 1e-3).backward()
        own.step()
        optimizer.step()
    return float(torch.cat([p.detach().float().flatten() for p in model.parameters()]).norm())


@pytest.fixture(scope="module")
def exact():
    """What fp32 weights come to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the decay of 0
        return {decay: norm_after(decay, "foreach", torch.float32) for decay in DECAYS}


@pytest.mark.parametrize("form", FORMS)
def test_norms_after_300_updates(form, exact):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        norms = {decay: norm_after(decay, form) for decay in DECAYS}
    said = [str(one.message) for one in found if "fp32 masters" in str(one.message)]
    assert exact[0.5] < 0.8 * exact[0.0] < exact[0.1] < 0.96 * exact[0.0]
    if form == "fused":
        assert said == []
        for decay in (0.1, 0.5):  # what the steps alone come to is another number in bf16
            assert norms[decay] / norms[0.0] == pytest.approx(exact[decay] / exact[0.0], rel=0.02)
    else:
        assert norms[0.0] == norms[0.1] == norms[0.5], "every decay rounds away"
        assert len(said) == len(DECAYS), "once an object"
        assert "torch.bfloat16 weights without fp32 masters" in said[2]
        assert "lr * decay below 2^-9 = 0.00195" in said[2]
        assert "with lr 0.001 and the base decay 0.5 it is 0.0005" in said[2]


@pytest.mark.parametrize("form", FORMS)
def test_premultiplying_them_is_refused_with_the_reason(form):
    with pytest.raises(UserError, match=r"bfloat16 weights without.*times 1 - lr \* decay rounds back"):
        built(0.1, form, torch.bfloat16, apply="premultiply")


def test_the_rate_that_is_told_is_that_of_after_the_warm_up():
    model = Uneven([(64, 60)]).bfloat16()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-2, foreach=True)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, update / 10))
    assert optimizer.param_groups[0]["lr"] == 0.0
    with pytest.warns(UserWarning, match=r"with lr 0\.01 and the base decay 0\.1 it is 0\.001,"):
        AlphaDecay(model, optimizer, weight_decay=0.1)
