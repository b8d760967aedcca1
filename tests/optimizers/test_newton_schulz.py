"""Batched products are torch.optim.Muon's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch.optim import _muon

from alphadecay_dist.optimizers.batches import Rule, orthogonalized
from alphadecay_dist.optimizers.newton_schulz import COEFFICIENTS, EPS, STEPS, orthogonalize, rate_ratio
from alphadecay_dist.params.fused import Cut

SHAPES = [(64, 64), (176, 64), (64, 176), (3, 50), (7, 5), (1, 1), (129, 257)]


def matrices_of(shape, count=3):
    generator = torch.Generator().manual_seed(shape[0])
    return [torch.randn(shape, generator=generator).bfloat16() for _ in range(count)]


def one_by_one(matrix, steps=STEPS):
    return _muon._zeropower_via_newtonschulz(matrix, COEFFICIENTS, steps, EPS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_batch_is_torchs_muon_one_by_one(shape, steps):
    matrices = matrices_of(shape)
    found = orthogonalize(matrices, steps)
    assert torch.equal(found, torch.stack([one_by_one(matrix, steps) for matrix in matrices]))
    assert not torch.equal(found[0], matrices[0])


def test_a_tall_matrix_rounds_as_torchs_does():
    """Of one in 25 like this an element came out differently where a copy of it was transposed."""
    matrix = torch.randn(1376, 512, generator=torch.Generator().manual_seed(18)).bfloat16()
    assert torch.equal(orthogonalize([matrix], 1)[0], one_by_one(matrix, 1))


def test_singular_values_come_near_one_and_zeros_stay():
    found = orthogonalize([matrix.float() for matrix in matrices_of((64, 96))])
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.equal(orthogonalize([torch.zeros(8, 5)])[0], torch.zeros(8, 5))


def test_shapes_and_rules_go_together_where_they_are_equal_alone():
    """Different shapes, one by heads, in one call: each as by itself; heads of o are columns."""
    whole, heads = (Rule(cut, STEPS, COEFFICIENTS, EPS) for cut in (None, Cut(("0", "1"), (32, 32))))
    columns, short = (
        Rule(Cut(("0", "1"), (32, 32), 1), STEPS, COEFFICIENTS, EPS),
        Rule(None, 2, COEFFICIENTS, EPS),
    )
    rules = {"a": whole, "q": heads, "o": columns, "b": whole, "c": short}
    names = dict(zip(rules, matrices_of((64, 64), 5), strict=True))
    names["b"] = matrices_of((40, 64))[0]
    found = orthogonalized(names, rules)
    assert torch.equal(found["a"], one_by_one(names["a"]))
    assert torch.equal(found["b"], one_by_one(names["b"]))
    assert torch.equal(found["c"], one_by_one(names["c"], 2))
    assert torch.equal(found["q"], torch.cat([one_by_one(part) for part in names["q"].split(32)]))
    by_columns = [one_by_one(part.contiguous()) for part in names["o"].split(32, dim=1)]
    torch.testing.assert_close(found["o"], torch.cat(by_columns, dim=1), rtol=0, atol=0.02)
    assert (found["o"] - one_by_one(names["o"])).abs().max() > 0.1
    assert heads.block_shape((64, 64)) == (32, 64)
    assert columns.block_shape((64, 64)) == (64, 32)


@pytest.mark.parametrize("adjustment", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rates_follow_shapes_as_torchs_do(adjustment, shape):
    assert rate_ratio(adjustment, shape) == pytest.approx(
        _muon._adjust_lr(1.0, adjustment, torch.Size(shape))
    )
