from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.spectral import analyze
from alphadecay_dist.spectral.esd import esd
from alphadecay_dist.spectral.metrics import (
    alpha_hat,
    frobenius_norm,
    log_norm,
    matrix_entropy,
    nuclear_to_frobenius,
    spectral_norm,
    stable_rank,
)
from tests.spectral.truth import MATRICES, heavy


@pytest.mark.parametrize("name", MATRICES)
def test_norms_are_those_of_the_matrix(name):
    whole = MATRICES[name].detach().double()
    report = analyze(MATRICES[name])
    frobenius, spectral = (float(torch.linalg.matrix_norm(whole, order)) for order in ("fro", 2))
    assert report.frobenius_norm == pytest.approx(frobenius, rel=1e-5)
    assert report.spectral_norm == pytest.approx(spectral, rel=1e-5)
    assert report.stable_rank == pytest.approx((frobenius / spectral) ** 2, rel=2e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(1e-3, 1e6))
def test_stable_rank_lies_between_one_and_the_number_of_eigenvalues(values, largest):
    eigenvalues = torch.tensor(sorted([*values, largest]), dtype=torch.float64)
    assert 1 <= stable_rank(eigenvalues) <= len(eigenvalues) * (1 + 1e-12)
    assert spectral_norm(eigenvalues) <= frobenius_norm(eigenvalues) * (1 + 1e-12)


def test_stable_rank_of_equal_and_of_single_directions():
    assert float(stable_rank(esd(torch.eye(60)).values)) == pytest.approx(60)
    assert float(stable_rank(esd(torch.ones(60, 70)).values)) == pytest.approx(1)


def test_entropy_is_one_for_equal_and_zero_for_a_single_direction():
    assert float(matrix_entropy(torch.full((60,), 3.0, dtype=torch.float64))) == pytest.approx(1)
    single = torch.zeros(60, dtype=torch.float64)
    single[-1] = 7.0
    assert matrix_entropy(single) == 0
    shares = [0.1, 0.2, 0.7]
    by_hand = -sum(p * math.log(p) for p in shares) / math.log(3)
    assert float(matrix_entropy(torch.tensor(shares, dtype=torch.float64) * 5)) == pytest.approx(by_hand)


def test_nuclear_to_frobenius_is_that_of_the_singular_values():
    singular = torch.linalg.svdvals(heavy(70, 90).double())
    expected = float((singular.sum() / singular.square().sum().sqrt()) ** 2)
    assert float(nuclear_to_frobenius(singular.square().flip(0))) == pytest.approx(expected)


def test_alpha_hat_and_log_norm_by_hand():
    values = torch.tensor([1.0, 9.0, 90.0], dtype=torch.float64)
    assert float(log_norm(values)) == pytest.approx(2.0)
    assert float(alpha_hat(2.5, values)) == pytest.approx(math.log1p(math.exp(2.5 * math.log10(90))))
    assert float(alpha_hat(2.5, values * 1e-9)) == pytest.approx(math.log1p(math.exp(2.5 * math.log10(9e-8))))
