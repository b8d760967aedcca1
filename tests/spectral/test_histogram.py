"""Histograms of spectra: what is in their bins, how they travel, and that nothing else changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from alphadecay_dist.spectral import Estimator, Histogram, analyze, analyze_stack
from alphadecay_dist.spectral.report import BINS, ENCODED, NO_HISTOGRAM
from tests.spectral.truth import true_eigenvalues

KEEPING = Estimator(keeps_histogram=True)


def a_matrix(seed=0, shape=(80, 60)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("fit", ["hill", "goodness_of_fit"])
def test_the_bins_hold_all_eigenvalues_and_the_tail_is_the_fits(fit):
    matrix = a_matrix()
    found = analyze(matrix, Estimator(fit, keeps_histogram=True))
    values = true_eigenvalues(matrix)
    histogram = found.histogram
    logs = values.log10()
    assert histogram.eigenvalues == 60
    assert (histogram.low, histogram.high) == pytest.approx((float(logs.min()), float(logs.max())))
    expected = torch.histc(logs, BINS, float(logs.min()), float(logs.max()))
    assert histogram.counts == tuple(expected.int().tolist())
    tail = values[values >= histogram.xmin * (1 - 1e-9)]
    assert histogram.tail == len(tail)
    assert histogram.alpha == found.alpha
    assert histogram.alpha == pytest.approx(1 + len(tail) / float((tail / histogram.xmin).log().sum()))


def test_all_else_is_bit_for_bit_as_without_and_a_stack_is_each_of_its_matrices():
    stack = torch.stack([a_matrix(seed) for seed in range(3)])
    kept = analyze_stack(stack, KEEPING)
    assert [replace(own, histogram=None) for own in kept] == analyze_stack(stack)
    assert kept == [analyze(matrix, KEEPING) for matrix in stack]
    assert len({own.histogram for own in kept}) == 3


def test_what_is_lost_in_rounding_is_in_no_bin():
    left, right = a_matrix(1, (80, 5)), a_matrix(2, (5, 60))
    found = analyze((left @ right).float(), KEEPING)
    assert found.status == "rank_deficient"
    assert (found.histogram.eigenvalues, sum(found.histogram.counts)) == (60, 5)
    assert (found.histogram.alpha, found.histogram.xmin, found.histogram.tail) == (None, None, 0)


def test_equal_eigenvalues_are_in_one_bin():
    found = analyze(torch.eye(64, dtype=torch.float64), KEEPING)
    assert found.status == "no_tail"
    assert max(found.histogram.counts) == sum(found.histogram.counts) == 64


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_without_a_spectrum_there_is_none(value):
    assert analyze(torch.full((64, 64), value), KEEPING).histogram is None


def test_a_histogram_travels_exactly():
    for matrix in (a_matrix(), torch.eye(64, dtype=torch.float64)):
        histogram = analyze(matrix, KEEPING).histogram
        numbers = torch.tensor(histogram.encode(), dtype=torch.float64).tolist()
        assert len(numbers) == ENCODED
        assert Histogram.decode(numbers) == histogram
    assert Histogram.decode(NO_HISTOGRAM) is None
