from __future__ import annotations

import dataclasses
import math

import powerlaw
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.spectral.powerlaw import Fit, fix_finger, fix_finger_released, goodness_of_fit, hill
from tests.spectral.truth import gaussian, heavy, spiked, true_eigenvalues

eigenvalue_lists = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=80)


def ascending(values):
    return torch.tensor(sorted(values), dtype=torch.float64)


@pytest.mark.parametrize(("count", "tail"), [(50, 25), (51, 26), (100, 50), (101, 51)])
def test_hill_of_a_geometric_tail_is_its_closed_form(count, tail):
    ratio = 0.05
    values = torch.exp(ratio * torch.arange(count, dtype=torch.float64))
    fit = hill(values)
    # The sum of the logarithms above xmin is ratio * tail * (tail - 1) / 2.
    assert float(fit.alpha) == pytest.approx(1 + 2 / (ratio * (tail - 1)), rel=1e-12)
    assert fit.xmin == float(values[count - tail])
    assert fit.tail == tail


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5, 6.0])
def test_hill_finds_the_exponent_of_an_exact_power_law(alpha):
    count = 20000
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    fit = hill((1 - share) ** (-1 / (alpha - 1)))
    assert float(fit.alpha) == pytest.approx(alpha, rel=1e-3)
    assert fit.ks < 1e-3


def test_xmin_pos_says_where_the_tail_begins():
    values = torch.arange(1, 101, dtype=torch.float64)
    fits = {position: hill(values, position) for position in (1.25, 2.0, 4.0)}
    assert {position: int(fit.tail) for position, fit in fits.items()} == {1.25: 20, 2.0: 50, 4.0: 75}
    assert {position: float(fit.xmin) for position, fit in fits.items()} == {1.25: 81.0, 2.0: 51.0, 4.0: 26.0}


@settings(deadline=None, max_examples=60)
@given(eigenvalue_lists)
def test_ks_is_the_largest_gap_between_the_distribution_functions(values):
    eigenvalues = ascending(values)
    fit = hill(eigenvalues)
    if math.isnan(fit.alpha):
        assert eigenvalues[-1] == eigenvalues[len(values) // 2]
        return
    tail = eigenvalues[len(values) // 2 :].tolist()
    fit = Fit(*(float(getattr(fit, field.name)) for field in dataclasses.fields(Fit)))
    gaps = []
    for rank, value in enumerate(tail):
        fitted = 1 - (value / fit.xmin) ** (1 - fit.alpha)
        gaps.append(abs(fitted - rank / len(tail)))
    assert float(fit.ks) == pytest.approx(max(gaps), abs=1e-9)
    assert 0 <= fit.ks <= 1


@settings(deadline=None, max_examples=60)
@given(eigenvalue_lists, st.floats(1e-12, 1e12))
def test_alpha_is_above_one_and_free_of_scale(values, scale):
    values = [*values, 2e3]  # a spread that scaling cannot round away
    fit, scaled = hill(ascending(values)), hill(ascending(values) * scale)
    assert fit.alpha > 1
    assert float(scaled.alpha) == pytest.approx(float(fit.alpha), rel=1e-9)
    assert float(scaled.ks) == pytest.approx(float(fit.ks), abs=1e-9)
    assert float(scaled.xmin) == pytest.approx(float(fit.xmin) * scale)


def is_none(fit):
    return math.isnan(fit.alpha) and math.isnan(fit.xmin) and math.isnan(fit.ks) and fit.tail == 0


@pytest.mark.parametrize("values", [[0.0], [5.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [3.0] * 60])
def test_without_a_tail_there_is_no_fit(values):
    assert is_none(hill(ascending(values)))


def test_a_heavier_tail_has_a_smaller_alpha():
    ranks = torch.arange(1, 101, dtype=torch.float64)
    alphas = [float(hill(ranks**power).alpha) for power in (0.5, 1.0, 2.0, 4.0)]
    assert alphas == sorted(alphas, reverse=True)
    assert all(math.isfinite(alpha) for alpha in alphas)


SPECTRA = {
    "gaussian": true_eigenvalues(gaussian(96, 160)),
    "heavy": true_eigenvalues(heavy(120, 90)),
    "spiked": true_eigenvalues(spiked(64, 172, 1e4)),
    "rank_deficient": torch.cat([torch.zeros(30, dtype=torch.float64), true_eigenvalues(heavy(60, 60, 3))]),
}


def by_package(values, xmin):
    """Exponent and KS distance of the powerlaw package, at the same xmin."""
    free = {"alpha": [1, 1000]}  # it stops at 3 otherwise
    fit = powerlaw.Fit(values.numpy(), xmin=xmin, parameter_ranges=free, verbose=False)
    return fit.power_law.alpha, fit.power_law.D


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("fit", [hill, goodness_of_fit, fix_finger])
def test_fits_are_those_of_the_powerlaw_package_at_the_same_xmin(name, fit):
    values = SPECTRA[name]
    found = fit(values)
    alpha, distance = by_package(values, float(found.xmin))
    assert float(found.alpha) == pytest.approx(alpha, rel=1e-9)
    assert float(found.ks) == pytest.approx(distance, abs=1e-9)


def tried_one_by_one(values, candidates):
    """The smallest KS distance over tails, by a loop over hill's formula."""
    best = None
    for start in candidates:
        tail = values[start:].log()
        alpha = 1 + tail.numel() / float((tail - tail[0]).sum())
        fitted = 1 - torch.exp((1 - alpha) * (tail - tail[0]))
        distance = float((fitted - torch.arange(tail.numel()).double() / tail.numel()).abs().max())
        best = min(best or (distance, start), (distance, start))
    return best


@pytest.mark.parametrize("name", SPECTRA)
def test_goodness_of_fit_takes_the_nearest_tail_of_all(name):
    values = SPECTRA[name]
    first = int((values > 0).nonzero()[0])
    distance, start = tried_one_by_one(values, range(first, len(values) - 1))
    found = goodness_of_fit(values)
    assert found.tail == len(values) - start
    assert float(found.ks) == pytest.approx(distance, abs=1e-12)


def test_goodness_of_fit_finds_where_the_power_law_begins():
    share = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    tail = 5 * (1 - share) ** (-1 / 1.5)
    body = torch.linspace(0.1, 5, 2000, dtype=torch.float64)
    found = goodness_of_fit(torch.cat([body, tail]).sort().values)
    assert float(found.xmin) == pytest.approx(5, rel=0.05)
    assert float(found.alpha) == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize("name", ["gaussian", "heavy", "spiked"])
def test_fix_finger_begins_near_the_peak(name):
    values = SPECTRA[name]
    logs = values.log10()
    counts = torch.zeros(100)
    width = (logs[-1] - logs[0]) / 100
    for value in logs:
        counts[min(99, int((value - logs[0]) / width))] += 1
    peak = float(10 ** (logs[0] + width * int(counts.argmax())))
    allowed = [i for i, value in enumerate(values[:-1]) if 0.95 * peak <= value <= 1.5 * peak]
    distance, start = tried_one_by_one(values, allowed)
    found = fix_finger(values)
    assert found.tail == len(values) - start
    assert float(found.ks) == pytest.approx(distance, abs=1e-12)


SEARCHED = [goodness_of_fit, fix_finger, fix_finger_released]


@pytest.mark.parametrize("fit", SEARCHED)
@pytest.mark.parametrize("values", [[0.0], [5.0], [0.0, 0.0, 1.0], [3.0] * 60])
def test_searched_fits_without_a_tail_are_none(fit, values):
    assert is_none(fit(ascending(values)))


@settings(deadline=None, max_examples=60)
@given(eigenvalue_lists, st.sampled_from(SEARCHED))
def test_searched_fits_are_finite_or_none(values, fit):
    found = fit(ascending(values))
    assert is_none(found) or (1 < found.alpha < math.inf and 0 <= found.ks <= 1 and found.tail >= 2)


@pytest.mark.parametrize("fit", [hill, *SEARCHED])
def test_a_stack_has_the_fits_of_its_rows(fit):
    rows = [
        true_eigenvalues(gaussian(96, 160)),
        true_eigenvalues(heavy(96, 120)),
        torch.ones(96, dtype=torch.float64),
        torch.cat([torch.zeros(60, dtype=torch.float64), true_eigenvalues(heavy(36, 60))]),
    ]
    stacked = fit(torch.stack(rows).reshape(2, 2, 96))
    for number, row in enumerate(rows):
        single = fit(row)
        for field in dataclasses.fields(Fit):
            found, expected = (getattr(of, field.name) for of in (stacked, single))
            assert torch.equal(found.flatten()[number].nan_to_num(-1), expected.nan_to_num(-1))
    assert bool(stacked.alpha.flatten()[0] > 1)
    assert math.isnan(stacked.alpha.flatten()[2])


def released_fix_finger(values):
    """The released code's search, written out: a logarithm is compared with eigenvalues."""
    logs = values.log10()
    counts = torch.histc(logs, 100, min=float(logs[0]), max=float(logs[-1]))
    edges = torch.linspace(float(logs[0]), float(logs[-1]), 101, dtype=torch.float64)
    peak = 10 ** float(edges[int(counts.argmax())])
    low, high = math.log10(0.95 * peak), 1.5 * peak
    return tried_one_by_one(values, [i for i, value in enumerate(values[:-1]) if low <= value <= high])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", ["gaussian", "heavy", "spiked"])
def test_the_released_fix_finger_searches_from_the_logarithm_of_the_peak(name, scale):
    values = SPECTRA[name] * scale
    distance, start = released_fix_finger(values)
    found = fix_finger_released(values)
    assert found.tail == len(values) - start
    assert float(found.ks) == pytest.approx(distance, abs=1e-12)


def test_released_and_corrected_fix_finger_differ():
    ratios = {
        (name, scale): float(fix_finger_released(values * scale).alpha / fix_finger(values * scale).alpha)
        for name, values in SPECTRA.items()
        for scale in (1e-3, 1.0, 1e3)
    }
    assert any(abs(ratio - 1) > 0.01 for ratio in ratios.values()), ratios
