"""Matrix -> empirical spectral density (ESD): the eigenvalues of its correlation matrix.

The route is a Gram matrix of the smaller side and ``eigvalsh``, in fp32 where that is exact enough and in
fp64 where the spectrum is too spread for it. The error of the fp32 route grows with
lambda_max / lambda_median, so that ratio decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# fp32 keeps alpha within 1e-5 up to here (worst of 40 spiked matrices of 64 x 172: 8e-6 at a ratio of 300,
# 4e-5 at 1e3, 3e-4 at 1e4). It also keeps the median above rounding, N * eps, for N up to 28,000.
FP32_MAX_SPREAD = 300


@dataclass(frozen=True)
class ESD:
    """The eigenvalues of W^T W (or W W^T, whichever is smaller) and how well they are known.

    Attributes:
        values: fp64, ascending, min(m, n) of them, on the matrix's device; never negative.
        eps: unit round-off of the precision that the eigenvalues were computed in.
    """

    values: Tensor
    eps: float


def esd(matrix: Tensor) -> ESD:
    """Eigenvalues of the correlation matrix of ``matrix``, the squares of its singular values.

    Args:
        matrix: (m, n), real floating point, on any device, every entry finite, not all zero.

    Returns:
        The ESD. A matrix is scaled by its largest entry first, so that magnitudes of 1e20 and 1e-20
        neither overflow nor vanish; what an fp64 eigenvalue cannot hold after that is inf or 0.

    Raises:
        ValueError: the matrix is not two-dimensional or is empty.
    """
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"expected a matrix with entries, found shape {tuple(matrix.shape)}")
    matrix = matrix.detach()
    scale = matrix.abs().max().double()
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    values = _gram_eigenvalues(matrix, scale, dtype)
    if dtype is torch.float32 and values[-1] > FP32_MAX_SPREAD * values[values.numel() // 2]:
        dtype = torch.float64
        values = _gram_eigenvalues(matrix, scale, dtype)
    return ESD(values.double().clamp_min(0) * scale * scale, torch.finfo(dtype).eps)


def _gram_eigenvalues(matrix: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Ascending eigenvalues of the smaller Gram matrix of matrix / scale, computed in ``dtype``."""
    # Divided in fp64 where fp32 could not hold the scale's inverse; rounded once either way.
    scaled = (matrix.double() / scale).to(dtype) if scale < 1e-30 else matrix.to(dtype) / scale.to(dtype)
    if scaled.shape[0] < scaled.shape[1]:
        scaled = scaled.T
    with full_precision_matmul():
        gram = scaled.T @ scaled  # (N, N), N = min(m, n)
    return torch.linalg.eigvalsh(gram)


@contextlib.contextmanager
def full_precision_matmul() -> Iterator[None]:
    """TF32 or bf16 products of fp32 matrices would move alpha by 3.5e-5 and more.

    The settings are the process's: threads that enter and leave must do so inside one that holds it.
    """
    # Each backend's own, for torch.get_float32_matmul_precision() raises once a user has set one of them.
    mkldnn: Any = torch.backends.mkldnn
    backends = torch.backends.cuda.matmul, mkldnn.matmul
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
