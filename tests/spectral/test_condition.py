"""Nuclear and stable ranks: known cases, no scale, undefined values that are named, exact spectra."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from alphadecay_dist.spectral.condition import (
    STEPS,
    GradientSpectrum,
    activation_rank,
    gradient_spectrum,
    largest_eigenvalues,
    nuclear_rank,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steep(m, n):
    """Singular values k^-2, of which an fp32 Gram matrix loses half."""
    size = min(m, n)
    left, right = torch.linalg.qr(drawn(m, m).double()).Q, torch.linalg.qr(drawn(n, n, seed=1).double()).Q
    return (left[:, :size] * torch.arange(1, size + 1).double() ** -2) @ right[:size]


def test_known_nuclear_ranks():
    assert nuclear_rank(torch.outer(drawn(80), drawn(90))) == pytest.approx(1, rel=2e-6)
    assert nuclear_rank(torch.linalg.qr(drawn(70, 70)).Q) == pytest.approx(70, rel=1e-6)
    assert nuclear_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(16 / 10, rel=1e-12)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
@pytest.mark.parametrize("make", [drawn, steep])
def test_the_nuclear_rank_is_that_of_exact_singular_values(make, shape):
    matrix = make(*shape).double()
    values = torch.linalg.svdvals(matrix)
    found = gradient_spectrum(matrix)
    assert found.nuclear_rank == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-7)
    assert found.norm == pytest.approx(float(matrix.norm()), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 3.7, 1e20])
def test_a_scale_changes_nothing(scale):
    matrix = steep(60, 90).float()
    expected, found = gradient_spectrum(matrix, 3, 1), gradient_spectrum(matrix * scale, 3, 1)
    assert found.nuclear_rank == pytest.approx(expected.nuclear_rank, rel=1e-6)
    assert found.blocks == pytest.approx(expected.blocks, rel=1e-6)
    assert found.norm == pytest.approx(expected.norm * scale, rel=1e-6)
    assert nuclear_rank(matrix.double() * 1e-300) == pytest.approx(expected.nuclear_rank, rel=1e-7)


def test_clipping_changes_nothing():
    weight = torch.nn.Parameter(torch.zeros(60, 90))
    weight.grad = steep(60, 90).float()
    before = gradient_spectrum(weight.grad)
    torch.nn.utils.clip_grad_norm_([weight], 0.01)
    after = gradient_spectrum(weight.grad)
    assert after.nuclear_rank == pytest.approx(before.nuclear_rank, rel=1e-6)
    assert after.norm == pytest.approx(0.01, rel=1e-3)


def test_blocks_are_heads_of_rows_or_columns():
    matrix = drawn(60, 90)
    rows = gradient_spectrum(matrix, 3).blocks
    assert rows == pytest.approx([nuclear_rank(own) for own in matrix.split(20)], rel=1e-12)
    columns = gradient_spectrum(matrix, 3, 1).blocks
    assert columns == pytest.approx([nuclear_rank(own) for own in matrix.split(30, 1)], rel=1e-12)
    matrix[:20] = 0
    assert gradient_spectrum(matrix, 3).blocks[0] is None
    with pytest.raises(ValueError, match="blocks: found 7, expected a divisor of 90 columns"):
        gradient_spectrum(matrix, 7, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_undefined_is_named(bad):
    matrix = torch.ones(50, 60)
    matrix[3, 4] = bad
    assert gradient_spectrum(matrix, 2) == GradientSpectrum(None, None, (None, None), "non_finite")
    assert gradient_spectrum(torch.zeros(50, 60), 2) == GradientSpectrum(None, 0.0, (None, None), "zero")
    assert activation_rank(matrix) is None
    assert activation_rank(torch.zeros(50, 60)) is None


def test_a_convolution_is_a_matrix():
    weight = drawn(20, 6, 3, 3)
    assert nuclear_rank(weight) == pytest.approx(nuclear_rank(weight.flatten(1)), rel=1e-12)


def gated(tokens, width=300):
    """The product of a SwiGLU MLP on random inputs, whose columns have nearly no mean."""
    inputs = drawn(tokens, 128)
    gate, up = drawn(128, width, seed=1) / 128**0.5, drawn(128, width, seed=2) / 128**0.5
    return functional.silu(inputs @ gate) * (inputs @ up)


def test_known_stable_ranks():
    assert activation_rank(drawn(1, 30).expand(50, 30)) == pytest.approx(1, rel=1e-6)
    assert activation_rank(torch.eye(30)) == pytest.approx(30, rel=1e-12)
    few, some, many = (activation_rank(gated(tokens)) for tokens in (64, 512, 4096))
    assert 10 < few < some < many
    assert activation_rank(drawn(512, 128).relu()) < 2 * math.pi  # activations with a mean


@pytest.mark.parametrize(
    "rows",
    [gated(256), drawn(512, 200).relu(), drawn(300, 3), drawn(3, 100), torch.ones(40, 30), torch.eye(30)],
)
def test_products_alone_give_the_largest_eigenvalue(rows):
    """That of several matrices at once, also where none stands out, and where there is no space to search."""
    other = drawn(40, 17, seed=5).double()
    exact = [rows.double().T @ rows.double(), other.T @ other]

    def products(blocks):
        return [exact[place] @ block for place, block in blocks.items()]

    found = largest_eigenvalues([len(matrix) for matrix in exact], products)
    assert found == pytest.approx([float(torch.linalg.eigvalsh(matrix)[-1]) for matrix in exact], rel=1e-6)


@pytest.mark.parametrize(("rows", "most"), [(drawn(512, 200).relu(), 6), (drawn(700, 600), STEPS)])
def test_products_end_where_the_eigenvalue_stands(rows, most):
    exact, calls = rows.double().T @ rows.double(), []

    def products(blocks):
        calls.append(list(blocks))
        return [exact @ block for block in blocks.values()]

    largest_eigenvalues([len(exact)], products)
    assert len(calls) == most


def test_a_product_that_is_not_finite_ends_its_search_alone():
    exact = [torch.eye(9).double() * math.nan, torch.diag(torch.arange(1.0, 10.0).double())]
    found = largest_eigenvalues(
        [9, 9], lambda blocks: [exact[place] @ block for place, block in blocks.items()]
    )
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(9, rel=1e-12)
