from __future__ import annotations

import pytest
import torch

from alphadecay_dist.spectral.esd import esd
from tests.spectral.truth import MATRICES, gaussian, true_eigenvalues


@pytest.mark.parametrize("name", MATRICES)
def test_eigenvalues_are_the_squared_singular_values(name):
    matrix = MATRICES[name]
    found, expected = esd(matrix), true_eigenvalues(matrix)
    values = found.values
    assert values.dtype == torch.float64
    assert values.shape == (min(matrix.shape),)
    assert not values.requires_grad
    assert bool((values >= 0).all())
    assert bool((values.diff() >= 0).all())
    assert float((values - expected).abs().max()) <= values.numel() * float(found.error[0])


@pytest.mark.parametrize(
    ("matrix", "dtype"),
    [
        (gaussian(64, 172), torch.float32),
        (gaussian(64, 172).bfloat16(), torch.float32),
        (gaussian(64, 172).half(), torch.float32),
        (gaussian(64, 172).double(), torch.float64),
    ],
)
def test_the_error_is_that_of_the_working_precision(matrix, dtype):
    found = esd(matrix)
    assert torch.equal(found.error, torch.finfo(dtype).eps * found.values[-1].expand(64))


def test_bf16_is_analysed_as_the_fp32_of_the_same_value():
    matrix = gaussian(64, 172).bfloat16()
    assert torch.equal(esd(matrix).values, esd(matrix.float()).values)


def test_the_matrix_is_left_as_it_was():
    matrix = gaussian(64, 80)
    before = matrix.clone()
    esd(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", [(), (64,), (0, 64)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="expected a real floating-point matrix"):
        esd(torch.ones(shape))


@pytest.fixture(params=["legacy", "per_backend"])
def reduced_precision(request):
    """The user allows fast products, by torch's old setting or by its new ones."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    if request.param == "legacy":
        torch.set_float32_matmul_precision("medium")
    else:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield lambda: [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision("highest")
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


def test_reduced_matmul_precision_neither_changes_the_result_nor_is_lost(reduced_precision):
    matrix = MATRICES["square"]
    allowed = reduced_precision()
    found = esd(matrix).values
    assert reduced_precision() == allowed == ["tf32", "bf16"]
    for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        backend.fp32_precision = "ieee"
    assert torch.equal(found, esd(matrix).values)
