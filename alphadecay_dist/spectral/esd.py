"""Matrix -> empirical spectral density (ESD): the eigenvalues of its correlation matrix.

It computes the Gram matrix of the smaller side and ``eigvalsh``, in fp64 for an fp64 matrix, else in fp32.
Whether that is exact enough depends on what is computed from the eigenvalues: see
:mod:`alphadecay_dist.spectral.analysis`. Everything works on one matrix or on a stack of one shape.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A largest entry between 2^-30 and 2^30 needs no scaling: squares stay far inside the range of fp32.
UNSCALED_EXPONENT = 30

# A Gram matrix of at most this size is computed whole: half the work in smaller products is then not faster.
GRAM_LEAF = 384

# torch's names of full precision for fp32 products: when set, and by default.
EXACT = ("ieee", "none")

# Kernel positions of a convolution are scaled by the square root of this, as in the released code.
CONV_NORM = 0.5


@dataclass(frozen=True)
class ESD:
    """The eigenvalues of W^T W (or W W^T, whichever is smaller) and their errors.

    Attributes:
        values: (..., N) fp64, ascending, on the matrix's device; never negative.
        error: (..., N) fp64, the unit round-off times the largest eigenvalue of the same matrix. Rounding
            moves an eigenvalue by about this much, and by at most N times this.
    """

    values: Tensor
    error: Tensor


def esd(matrices: Tensor) -> ESD:
    """Eigenvalues of the correlation matrix of each matrix, the squares of its singular values.

    Args:
        matrices: (..., m, n), real floating point, on any device.

    Returns:
        The ESD, N = min(m, n). Entries of 1e20 and 1e-20 neither overflow nor underflow; an eigenvalue
        outside the range of fp64 is inf or 0. A matrix with a non-finite entry gives NaN everywhere.

    Raises:
        ValueError: fewer than two dimensions, no entries, or entries that are not real floating point.
        torch.linalg.LinAlgError: the eigensolver did not converge.
    """
    if matrices.ndim < 2 or matrices.numel() == 0 or not matrices.is_floating_point():
        raise ValueError(
            "expected a real floating-point matrix with entries, "
            f"found {matrices.dtype} of shape {tuple(matrices.shape)}"
        )
    batch, shape = matrices.shape[:-2], matrices.shape[-2:]
    dtype = torch.float64 if matrices.dtype == torch.float64 else torch.float32
    stack = matrices.detach().reshape(-1, *shape).to(dtype)
    # (B,) on the host, NaN or inf if an entry is
    largest = torch.maximum(stack.amax((1, 2)), -stack.amin((1, 2))).double().cpu()
    finite = largest.isfinite()
    if not bool(finite.all()):  # hidden from the eigensolver, where one NaN fails the whole stack
        stack = torch.where(finite.to(stack.device)[:, None, None], stack, 0)
    exponents = _exponents(torch.where(finite, largest, 0))
    values = _gram_eigenvalues(_scaled(stack, exponents))
    values = values * (2.0**exponents).square().to(values.device)[:, None]
    values[~finite.to(values.device)] = math.nan
    error = (torch.finfo(dtype).eps * values[:, -1:]).repeat(1, values.shape[1])
    return ESD(values.reshape(*batch, -1), error.reshape(*batch, -1))


def conv_esd(weight: Tensor) -> ESD:
    """Eigenvalues of a Conv2d weight: those of all kernel positions, pooled (as in the released code).

    Args:
        weight: (out, in, height, width); each position is an (out, in) matrix, scaled by the square root
            of ``CONV_NORM``.

    Returns:
        height * width * min(out, in) eigenvalues in one ascending row, each with the error of its position.
    """
    return pooled(esd(weight.flatten(2).permute(2, 0, 1)), CONV_NORM)


def pooled(densities: ESD, factor: float = 1.0) -> ESD:
    """The eigenvalues of a whole (B, N) stack as one ascending row, times ``factor``."""
    values, order = (densities.values.flatten() * factor).sort()
    return ESD(values, densities.error.flatten()[order] * factor)


def _exponents(largest: Tensor) -> Tensor:
    """(B,) fp64 on the host: the exponent e of each matrix's scale 2^-e; 0 if none is needed."""
    exponents = torch.frexp(largest).exponent.double()
    needed = exponents.abs() > UNSCALED_EXPONENT  # per matrix: scaling can change the rounding
    return torch.where(needed, exponents.clamp(-1000, 1000), 0)  # beyond that, 2^-e is not an fp64 number


def _scaled(stack: Tensor, exponents: Tensor) -> Tensor:
    """The stack times 2^-e, exactly: via fp64, because fp32 cannot represent every 2^-e."""
    if not bool(exponents.any()):
        return stack
    return (stack.double() * (2.0**-exponents).to(stack.device)[:, None, None]).to(stack.dtype)


def _gram_eigenvalues(stack: Tensor) -> Tensor:
    """Ascending eigenvalues (B, N) of the smaller Gram matrices, computed in the stack's precision."""
    columns = stack if stack.shape[1] >= stack.shape[2] else stack.mT
    with full_precision_matmul(), torch.autocast(stack.device.type, enabled=False):
        gram = _gram(columns)
    return torch.linalg.eigvalsh(gram, UPLO="L").double().clamp_min(0)


def _gram(columns: Tensor) -> Tensor:
    """The lower triangles of W^T W, (B, N, N); the upper ones are filled only in part."""
    if columns.device.type != "cpu":
        return columns.mT @ columns
    grams = columns.new_zeros(len(columns), columns.shape[2], columns.shape[2])
    for gram, matrix in zip(
        grams, columns, strict=True
    ):  # batched products round differently in other threads
        _fill_lower(gram, matrix)
    return grams


def _fill_lower(gram: Tensor, columns: Tensor) -> None:
    """Halve until small: blocks above the diagonal are not computed, which saves nearly half of the work."""
    size = columns.shape[1]
    if size <= GRAM_LEAF:
        torch.mm(columns.T, columns, out=gram)
        return
    half = size // 2
    left, right = columns[:, :half], columns[:, half:]
    torch.mm(right.T, left, out=gram[half:, :half])
    _fill_lower(gram[:half, :half], left)
    _fill_lower(gram[half:, half:], right)


@contextlib.contextmanager
def full_precision_matmul() -> Iterator[None]:
    """Compute fp32 products exactly: TF32 or bf16 products would move alpha by 3.5e-5 and more.

    The settings belong to the process, so threads may enter and leave only while an outer thread is inside.
    If products are exact already, nothing is set, so a thread in the background of training may enter too.
    """
    reduced = {name: precision for name, precision in matmul_precisions().items() if precision not in EXACT}
    for name in reduced:
        _backends()[name].fp32_precision = "ieee"
    try:
        yield
    finally:
        for name, precision in reduced.items():
            _backends()[name].fp32_precision = precision


def matmul_precisions() -> dict[str, str]:
    """The precision of fp32 matrix products by device type; full if it is in ``EXACT``."""
    return {name: backend.fp32_precision for name, backend in _backends().items()}


def _backends() -> dict[str, Any]:
    # Per backend, because torch.get_float32_matmul_precision() raises once a user has set one of them.
    mkldnn: Any = torch.backends.mkldnn
    return {"cuda": torch.backends.cuda.matmul, "cpu": mkldnn.matmul}
