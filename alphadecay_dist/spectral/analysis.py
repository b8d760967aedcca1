"""One matrix -> its report: alpha where it is defined, a named status where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
from alphadecay_dist.spectral.powerlaw import FITS

MIN_EIGENVALUES = 50  # fewer than these carry no tail to fit (as in the released code)

OK = "ok"
TOO_SMALL = "too_small"  # fewer than MIN_EIGENVALUES eigenvalues
NON_FINITE = "non_finite"  # a NaN or an infinity among the entries, or their squares beyond fp64
ZERO = "zero"  # nothing but zeros, or their squares below fp64
RANK_DEFICIENT = "rank_deficient"  # the median eigenvalue is lost in rounding
NO_TAIL = "no_tail"  # all eigenvalues of the tail are equal up to rounding
FAILED = "failed"  # the eigensolver gave up
STATUSES = (OK, TOO_SMALL, NON_FINITE, ZERO, RANK_DEFICIENT, NO_TAIL, FAILED)


@dataclass(frozen=True)
class Analysis:
    """What the spectrum of one matrix says. Undefined values are None; no NaN and no infinity is in it.

    Attributes:
        alpha: power-law exponent of the tail; None unless ``status`` is "ok".
        ks: Kolmogorov-Smirnov distance of that fit.
        stable_rank: squared Frobenius over squared spectral norm.
        spectral_norm: largest singular value.
        frobenius_norm: root of the sum of squares of the entries.
        log_norm: log10 of the squared Frobenius norm.
        matrix_entropy: entropy of the eigenvalues over its largest value, in [0, 1].
        nuclear_to_frobenius: squared nuclear over squared Frobenius norm.
        alpha_hat: softplus(alpha log10 lambda_max); None where alpha is.
        status: one of ``STATUSES``.
    """

    alpha: float | None = None
    ks: float | None = None
    stable_rank: float | None = None
    spectral_norm: float | None = None
    frobenius_norm: float | None = None
    log_norm: float | None = None
    matrix_entropy: float | None = None
    nuclear_to_frobenius: float | None = None
    alpha_hat: float | None = None
    status: str = OK


def analyze(matrix: Tensor, *, fit: str = "hill") -> Analysis:
    """Analyse the spectrum of one weight matrix.

    Args:
        matrix: (m, n), fp32, bf16, fp16 or fp64, on any device, wide or tall, contiguous or not.
        fit: the estimator of alpha, a name of ``FITS``: ``hill`` (at the median, as published),
            ``goodness_of_fit`` or ``fix_finger``.

    Returns:
        The analysis; whatever the matrix holds, a status and never an exception.

    Raises:
        ValueError: ``matrix`` is not two-dimensional.
    """
    if matrix.ndim != 2:
        raise ValueError(f"analyze expects a matrix (m, n), found shape {tuple(matrix.shape)}")
    if min(matrix.shape) < MIN_EIGENVALUES:
        return Analysis(status=TOO_SMALL)
    if not bool(torch.isfinite(matrix).all()):
        return Analysis(status=NON_FINITE)
    if not bool(matrix.any()):
        return Analysis(status=ZERO)
    try:
        density = esd(matrix)
    except torch.linalg.LinAlgError:
        return Analysis(status=FAILED)
    values = density.values
    total = float(values.sum())
    if total == 0 or math.isinf(total):
        return Analysis(status=NON_FINITE if total else ZERO)
    norms = Analysis(
        stable_rank=stable_rank(values),
        spectral_norm=spectral_norm(values),
        frobenius_norm=frobenius_norm(values),
        log_norm=log_norm(values),
        matrix_entropy=matrix_entropy(values),
        nuclear_to_frobenius=nuclear_to_frobenius(values),
    )
    # Rounding moves an eigenvalue by up to N eps lambda_max: below it xmin is noise, and so is a tail that
    # spans less than it (an orthogonal matrix would otherwise have an alpha of a million).
    floor = float(values.numel() * density.eps * values[-1])
    known = torch.where(values > floor, values, 0)
    found = FITS[fit](known)
    if found is None and not bool(known[values.numel() // 2]):
        return replace(norms, status=RANK_DEFICIENT)
    if found is None or float(values[-1]) - found.xmin <= floor:
        return replace(norms, status=NO_TAIL)
    return replace(norms, alpha=found.alpha, ks=found.ks, alpha_hat=alpha_hat(found.alpha, values))
