from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from alphadecay_dist.training.tasks.language import loss as losses
from alphadecay_dist.training.tasks.language.loss import IGNORE, LossHead


def head_and_inputs(dtype=torch.float32, rows=50):
    generator = torch.Generator().manual_seed(0)
    head = LossHead(24, 90, bias=False)
    torch.nn.init.normal_(head.weight, std=0.2, generator=generator)
    head = head.to(dtype)
    hidden = torch.randn(rows, 24, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 90, (rows,), generator=generator)
    targets[::7] = IGNORE
    return head, hidden, targets


def reference(head, hidden, targets):
    """Loss and gradients in fp64, from the logits of all rows."""
    weight = head.weight.detach().double().requires_grad_()
    rows = hidden.detach().double().requires_grad_()
    total = functional.cross_entropy(rows @ weight.T, targets, ignore_index=IGNORE, reduction="sum")
    total.backward()
    return total.detach(), rows.grad, weight.grad


@pytest.mark.parametrize("at_once", [2**25, 90, 90 * 7, 1])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradients_are_those_of_whole_logits(monkeypatch, at_once, dtype, close):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    head, hidden, targets = head_and_inputs(dtype)
    total = head(hidden, targets)
    (total * 0.25).backward()
    expected, of_hidden, of_weight = reference(head, hidden, targets)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=close / 10)
    for found, wanted in ((hidden.grad, of_hidden), (head.weight.grad, of_weight)):
        assert found.dtype == dtype
        assert float((found.double() - 0.25 * wanted).norm() / (0.25 * wanted).norm()) < close


def test_padding_alone_has_no_loss_and_no_gradient():
    head, hidden, targets = head_and_inputs()
    total = head(hidden, torch.full_like(targets, IGNORE))
    total.backward()
    assert total.item() == 0
    assert not hidden.grad.any()
    assert not head.weight.grad.any()


def test_without_gradients_none_is_computed():
    head, hidden, targets = head_and_inputs()
    with torch.no_grad():
        total = head(hidden, targets)
    assert not total.requires_grad
    assert total.item() == pytest.approx(reference(head, hidden, targets)[0].item(), rel=1e-6)


def test_autocast_computes_the_logits_in_bf16():
    head, hidden, targets = head_and_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = head(hidden, targets)
    total.backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32
    expected = reference(head, hidden, targets)[0].item()
    assert total.item() != expected
    assert total.item() == pytest.approx(expected, rel=1e-3)
