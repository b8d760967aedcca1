from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.spectral import hill

eigenvalue_lists = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=80)


def ascending(values):
    return torch.tensor(sorted(values), dtype=torch.float64)


@pytest.mark.parametrize(("count", "tail"), [(50, 25), (51, 26), (100, 50), (101, 51)])
def test_hill_of_a_geometric_tail_is_its_closed_form(count, tail):
    ratio = 0.05
    values = torch.exp(ratio * torch.arange(count, dtype=torch.float64))
    fit = hill(values)
    # The sum of the logarithms above xmin is ratio * tail * (tail - 1) / 2.
    assert fit.alpha == pytest.approx(1 + 2 / (ratio * (tail - 1)), rel=1e-12)
    assert fit.xmin == float(values[count - tail])
    assert fit.tail == tail


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5, 6.0])
def test_hill_finds_the_exponent_of_an_exact_power_law(alpha):
    count = 20000
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    fit = hill((1 - share) ** (-1 / (alpha - 1)))
    assert fit.alpha == pytest.approx(alpha, rel=1e-3)
    assert fit.ks < 1e-3


def test_xmin_pos_says_where_the_tail_begins():
    values = torch.arange(1, 101, dtype=torch.float64)
    fits = {position: hill(values, position) for position in (1.25, 2.0, 4.0)}
    assert {position: fit.tail for position, fit in fits.items()} == {1.25: 20, 2.0: 50, 4.0: 75}
    assert {position: fit.xmin for position, fit in fits.items()} == {1.25: 81.0, 2.0: 51.0, 4.0: 26.0}


@settings(deadline=None, max_examples=60)
@given(eigenvalue_lists)
def test_ks_is_the_largest_gap_between_the_distribution_functions(values):
    eigenvalues = ascending(values)
    fit = hill(eigenvalues)
    if fit is None:
        assert eigenvalues[-1] == eigenvalues[len(values) // 2]
        return
    tail = eigenvalues[len(values) // 2 :].tolist()
    gaps = []
    for rank, value in enumerate(tail):
        fitted = 1 - (value / fit.xmin) ** (1 - fit.alpha)
        gaps += [abs(fitted - rank / len(tail)), abs(fitted - (rank + 1) / len(tail))]
    assert fit.ks == pytest.approx(max(gaps), abs=1e-9)
    assert 0 <= fit.ks <= 1


@settings(deadline=None, max_examples=60)
@given(eigenvalue_lists, st.floats(1e-12, 1e12))
def test_alpha_is_above_one_and_free_of_scale(values, scale):
    values = [*values, 2e3]  # a spread that scaling cannot round away
    fit, scaled = hill(ascending(values)), hill(ascending(values) * scale)
    assert fit.alpha > 1
    assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-9)
    assert scaled.ks == pytest.approx(fit.ks, abs=1e-9)
    assert scaled.xmin == pytest.approx(fit.xmin * scale)


@pytest.mark.parametrize("values", [[], [0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [3.0] * 60])
def test_without_a_tail_there_is_no_fit(values):
    assert hill(ascending(values)) is None


def test_a_heavier_tail_has_a_smaller_alpha():
    ranks = torch.arange(1, 101, dtype=torch.float64)
    alphas = [hill(ranks**power).alpha for power in (0.5, 1.0, 2.0, 4.0)]
    assert alphas == sorted(alphas, reverse=True)
    assert all(math.isfinite(alpha) for alpha in alphas)
