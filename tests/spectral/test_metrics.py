from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.spectral import analyze
from alphadecay_dist.spectral.esd import esd
from alphadecay_dist.spectral.metrics import frobenius_norm, spectral_norm, stable_rank
from tests.spectral.truth import MATRICES


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
    assert stable_rank(esd(torch.eye(60)).values) == pytest.approx(60)
    assert stable_rank(esd(torch.ones(60, 70)).values) == pytest.approx(1)
