from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.spectral import PUBLISHED, STATUSES, Estimator, analyze
from alphadecay_dist.spectral.analysis import _densities, _doubtful
from alphadecay_dist.spectral.powerlaw import fit_tail
from tests.spectral.truth import MATRICES, gaussian, heavy, orthogonal, spiked, true_alpha, true_eigenvalues


def with_entry(value):
    matrix = gaussian(60, 80)
    matrix[7, 11] = value
    return matrix


def of_rank(rank):
    return gaussian(64, rank) @ gaussian(rank, 80, 1)


UNDEFINED = {
    "too_small": [torch.ones(49, 500), torch.ones(500, 49), torch.ones(1, 1), torch.ones(0, 64)],
    "non_finite": [
        *(with_entry(value) for value in (math.nan, math.inf, -math.inf)),
        torch.full((64, 64), math.nan),
        gaussian(64, 64).double() * 1e200,  # finite, but not its squares
    ],
    "zero": [
        torch.zeros(64, 80),
        torch.zeros(64, 80, dtype=torch.bfloat16),
        -torch.zeros(64, 64),
        gaussian(64, 64).double() * 1e-200,
    ],
    "rank_deficient": [of_rank(1), of_rank(20), of_rank(31), with_entry(1e20), torch.ones(60, 60)],
    "no_tail": [
        torch.eye(64),
        torch.eye(60, 80) * 1e-20,
        torch.full((64,), -3.0).diag(),
        *(orthogonal(size).to(dtype) for size in (64, 512) for dtype in (torch.float32, torch.float64)),
        orthogonal(128)[:60].float() * 1e20,
    ],
}


ESTIMATORS = [Estimator(xmin_pos=position) for position in (1.2, 2.0, 3.0, 10.0, 40.0)]
ESTIMATORS += [Estimator("goodness_of_fit"), Estimator("fix_finger"), Estimator("fix_finger_released")]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: f"{e.fit}_{e.xmin_pos}")
@pytest.mark.parametrize("name", MATRICES)
def test_alpha_is_that_of_fp64_singular_values(name, estimator):
    report = analyze(MATRICES[name], estimator)
    expected = fit_tail(true_eigenvalues(MATRICES[name]), estimator)
    assert report.status == "ok"
    assert report.alpha == pytest.approx(float(expected.alpha), abs=1e-5)
    assert report.ks == pytest.approx(float(expected.ks), abs=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [
        gaussian(50, 8000),
        gaussian(64, 4096),
        orthogonal(128).bfloat16(),
        orthogonal(256) + 1e-3 * gaussian(256, 256),
    ],
    ids=["wide", "aspect_64", "orthogonal_bf16", "nearly_orthogonal"],
)
def test_a_light_tail_is_as_exact(matrix):
    report = analyze(matrix.float())
    assert report.alpha > 9
    assert report.alpha == pytest.approx(true_alpha(matrix.float()), abs=1e-5)


@pytest.mark.parametrize(
    ("matrix", "doubtful"),
    [
        (gaussian(512, 512), False),
        (gaussian(1376, 512), False),
        (spiked(512, 512, 30), False),
        (spiked(64, 172, 1000), True),
        (gaussian(64, 30) @ gaussian(30, 64), True),
        (torch.zeros(64, 64), False),
        (torch.full((64, 64), math.nan), False),
    ],
)
def test_fp64_is_taken_where_fp32_leaves_a_doubt(matrix, doubtful):
    assert bool(_doubtful(_densities(matrix[None], PUBLISHED), PUBLISHED)) == doubtful


def test_a_large_spiked_matrix_is_not_taken_for_a_rank_deficient_one():
    # fp32 cannot tell: N eps is above lambda_median / lambda_max.
    matrix = spiked(950, 950, 9500)
    assert analyze(matrix).alpha == pytest.approx(true_alpha(matrix), abs=1e-5)


@pytest.mark.parametrize(
    ("status", "matrix"), [(status, matrix) for status, matrices in UNDEFINED.items() for matrix in matrices]
)
def test_an_undefined_alpha_has_a_named_status(status, matrix):
    report = analyze(matrix)
    assert report.status == status
    assert report.status in STATUSES
    assert report.alpha is None
    assert report.ks is None
    assert all(math.isfinite(number) for number in vars(report).values() if isinstance(number, float))


def test_rank_above_half_keeps_its_alpha():
    matrix = of_rank(40)
    assert analyze(matrix).alpha == pytest.approx(true_alpha(matrix), abs=1e-5)


def test_an_orthogonal_matrix_rounded_to_bf16_has_a_finite_alpha():
    report = analyze(orthogonal(128).bfloat16())
    assert report.status == "ok"
    assert 100 < report.alpha < 1e5


def test_one_large_direction_is_a_tail():
    matrix = orthogonal(64)
    matrix[:, 0] *= 3
    # All but one of the 32 tail eigenvalues are 1, the last is 9.
    assert analyze(matrix.float()).alpha == pytest.approx(1 + 32 / math.log(9), rel=1e-4)


@pytest.mark.parametrize("shape", [(), (64,), (2, 64, 64), (2, 3, 4, 5, 6)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="expects a real matrix"):
        analyze(torch.ones(shape))


same_matrices = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 10**6)


@st.composite
def matrices(draw):
    """Wide, square and tall ones, random, heavy-tailed and spiked, in fp32 or rounded to bf16."""
    rows, columns, seed = draw(st.integers(50, 90)), draw(st.integers(50, 90)), draw(seeds)
    kind = draw(st.sampled_from(["gaussian", "heavy", "spiked"]))
    if kind == "spiked":
        matrix = spiked(rows, columns, 10 ** draw(st.floats(1, 6)), seed)
    else:
        matrix = (gaussian if kind == "gaussian" else heavy)(rows, columns, seed)
    return matrix.bfloat16().float() if draw(st.booleans()) else matrix


def same_alpha(matrix, other):
    return analyze(other).alpha == pytest.approx(analyze(matrix).alpha, abs=1e-5)


@same_matrices
@given(matrices(), st.floats(-20, 20))
def test_alpha_is_free_of_scale(matrix, exponent):
    assert same_alpha(matrix, matrix.double() * 10**exponent)


@same_matrices
@given(matrices())
def test_alpha_is_that_of_the_transpose(matrix):
    assert same_alpha(matrix, matrix.T)


@same_matrices
@given(matrices(), seeds)
def test_alpha_is_free_of_the_order_of_rows_and_columns(matrix, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(size, generator=generator) for size in matrix.shape)
    assert same_alpha(matrix, matrix[rows][:, columns])


@same_matrices
@given(matrices(), seeds)
def test_alpha_is_free_of_rotation(matrix, seed):
    left, right = (orthogonal(size, seed) for size in matrix.shape)
    assert same_alpha(matrix, left @ matrix.double() @ right)


@same_matrices
@given(matrices(), seeds)
def test_goodness_of_fit_is_free_of_scale_side_and_rotation(matrix, seed):
    # Where two tails fit equally well rounding may choose either, with another alpha but the same distance.
    estimator = Estimator("goodness_of_fit")
    rotated = orthogonal(matrix.shape[0], seed) @ matrix.double()
    for other in (matrix.T, rotated, matrix * 2**20):
        found, expected = analyze(other, estimator), analyze(matrix, estimator)
        assert found.ks == pytest.approx(expected.ks, abs=1e-5)


@same_matrices
@given(st.integers(50, 90), st.integers(50, 90), seeds, st.sampled_from([0.0, 1e-30, 1e30, 3e38, math.nan]))
def test_any_matrix_has_a_value_or_a_status(rows, columns, seed, entry):
    matrix = gaussian(rows, columns, seed)
    matrix[seed % rows] = entry
    report = analyze(matrix)
    assert (report.alpha is None) == (report.status != "ok")
    assert all(math.isfinite(number) for number in vars(report).values() if isinstance(number, float))
