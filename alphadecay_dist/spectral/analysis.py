"""One weight -> its analysis: alpha if it is defined, else a status that says why not."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from alphadecay_dist.errors import warn
from alphadecay_dist.spectral.esd import ESD, conv_esd, esd
from alphadecay_dist.spectral.estimator import PUBLISHED, Estimator
from alphadecay_dist.spectral.farms import pooled_windows
from alphadecay_dist.spectral.histogram import histograms
from alphadecay_dist.spectral.metrics import (
    alpha_hat,
    frobenius_norm,
    log_norm,
    matrix_entropy,
    nuclear_to_frobenius,
    spectral_norm,
    stable_rank,
)
from alphadecay_dist.spectral.powerlaw import fit_tail
from alphadecay_dist.spectral.report import (
    FAILED,
    MIN_EIGENVALUES,
    NO_TAIL,
    NON_FINITE,
    RANK_DEFICIENT,
    SHARDED,
    TOO_SMALL,
    ZERO,
    Analysis,
)
from alphadecay_dist.spectral.sharded import is_sharded

# fp32 is used if it moves alpha by less than this, as estimated by _doubtful(). The error was up to 1.5 times
# the estimate for 1500 matrices (random, heavy-tailed, spiked and trained, 50 x 50 to 768 x 768), at four
# positions of xmin and with the LAPACK kernels of several processors.
ALPHA_ERROR = 6.5e-6


def analyze(weight: Tensor, estimator: Estimator = PUBLISHED) -> Analysis:
    """Analyse the spectrum of one weight.

    Args:
        weight: a matrix (m, n) or a Conv2d weight (out, in, height, width); fp32, bf16, fp16 or fp64, on any
            device, wide or tall, contiguous or not.
        estimator: how to estimate alpha; by default Hill at the median, as published.

    Returns:
        The analysis. Bad values in the weight give a status, never an exception.

    Raises:
        ValueError: ``weight`` has another number of dimensions, is not real floating point, or is smaller
            than a FARMS window.
    """
    if weight.ndim not in (2, 4) or not weight.is_floating_point():
        raise ValueError(
            "analyze expects a real matrix (m, n) or Conv2d weight (out, in, height, width), found "
            f"{weight.dtype} of shape {tuple(weight.shape)}; for a stack of matrices use analyze_stack"
        )
    if is_sharded(weight):
        return Analysis(status=SHARDED)
    if min(weight.shape) == 0 or estimator.eigenvalues_of(weight.shape) < MIN_EIGENVALUES:
        return Analysis(status=TOO_SMALL)
    if estimator.windows is not None:
        estimator.windows.check_fit(weight.shape)
    try:
        return _analyze_all(weight[None], estimator)[0]
    except Exception as error:  # any error: the other ranks wait for this rank's other results
        warn(f"analysis of a {tuple(weight.shape)} weight failed: {str(error) or type(error).__name__}")
        return Analysis(status=FAILED)


def analyze_stack(stack: Tensor, estimator: Estimator = PUBLISHED) -> list[Analysis]:
    """Analyse matrices of one shape together; bit for bit equal to :func:`analyze` of each.

    Args:
        stack: (B, m, n), such as the weights of B experts.
        estimator: how to estimate alpha.

    Raises:
        ValueError: as for :func:`analyze`.
    """
    if stack.ndim != 3 or is_sharded(stack) or estimator.windows is not None or not stack.numel():
        return [analyze(matrix, estimator) for matrix in stack]
    if estimator.eigenvalues_of(stack.shape[1:]) < MIN_EIGENVALUES:
        return [Analysis(status=TOO_SMALL)] * len(stack)
    try:
        return _analyze_all(stack, estimator)
    except Exception:  # one matrix fails: find out which
        return [analyze(matrix, estimator) for matrix in stack]


def _analyze_all(weights: Tensor, estimator: Estimator) -> list[Analysis]:
    """Analyses of (B, ...) weights of one shape; in fp64 for those where fp32 is not exact enough."""
    if estimator.reads_all or weights.dtype == torch.float64:
        densities = _densities(weights.double(), estimator)
    else:
        densities = _densities(weights, estimator)
        for row in _doubtful(densities, estimator).nonzero().flatten().tolist():
            exact = _densities(weights[row : row + 1].double(), estimator)
            densities.values[row], densities.error[row] = exact.values[0], exact.error[0]
    working = torch.float64 if weights.dtype == torch.float64 else torch.float32
    return _reports(densities, torch.finfo(working).eps, estimator)


def _densities(weights: Tensor, estimator: Estimator) -> ESD:
    """The (B, N) spectra of weights of one shape: of the matrices, their windows or kernel positions."""
    windows = estimator.windows
    if windows is None and weights.ndim == 3:
        return esd(weights)
    rows = [conv_esd(weight) if windows is None else pooled_windows(weight, windows) for weight in weights]
    return ESD(torch.stack([row.values for row in rows]), torch.stack([row.error for row in rows]))


def _doubtful(densities: ESD, estimator: Estimator) -> Tensor:
    """(B,) whether fp32 may have moved alpha too far, or made it undefined.

    An error d of the eigenvalues moves Hill's sum of k logarithms by up to k d / xmin, and so alpha by
    (alpha - 1)^2 d / xmin. The eigensolver's part of d is proportional to the largest eigenvalue. The Gram
    matrix's part is proportional to its diagonal, the mean eigenvalue. The two factors are measured.
    """
    fit = fit_tail(_known(densities), estimator)
    values = densities.values
    error = 0.25 * densities.error.amax(-1) + 10 * torch.finfo(torch.float32).eps * values.mean(-1)
    estimate = (fit.alpha - 1).square() * error / fit.xmin
    total = values.sum(-1)
    return ~(estimate <= ALPHA_ERROR) & total.isfinite() & (total > 0)


def _known(densities: ESD) -> Tensor:
    """(B, N) ascending eigenvalues, with 0 for those below the rounding error."""
    values = densities.values
    return torch.where(values > values.shape[1] * densities.error, values, 0).sort(-1).values


def _reports(densities: ESD, eps: float, estimator: Estimator) -> list[Analysis]:
    """Analyses of (B, N) spectra of matrices whose entries are known to a relative ``eps``."""
    values, known = densities.values, _known(densities)
    count = values.shape[1]
    fit = fit_tail(known, estimator)
    columns = {
        "stable_rank": stable_rank(values),
        "spectral_norm": spectral_norm(values),
        "frobenius_norm": frobenius_norm(values),
        "log_norm": log_norm(values),
        "matrix_entropy": matrix_entropy(values),
        "nuclear_to_frobenius": nuclear_to_frobenius(values),
        "alpha": fit.alpha,
        "ks": fit.ks,
        "alpha_hat": alpha_hat(fit.alpha, values),
        "total": values.sum(-1),
        "start": known[:, estimator.start(count)],
        # A tail narrower than the rounding of the entries is noise: otherwise an orthogonal matrix would
        # have an alpha of a million.
        "span": (1 - count * eps) * values[:, -1] - fit.xmin,
    }
    rows = torch.stack(list(columns.values()), dim=1).tolist()  # one copy to the host
    reports = [_report(dict(zip(columns, row, strict=True))) for row in rows]
    if not estimator.keeps_histogram:
        return reports
    kept = histograms(known, fit)
    return [replace(found, histogram=own) for found, own in zip(reports, kept, strict=True)]


def _report(numbers: dict[str, float]) -> Analysis:
    """One analysis from its numbers, computed by :func:`_reports`."""
    total, start, span = (numbers.pop(name) for name in ("total", "start", "span"))
    if not math.isfinite(total):
        return Analysis(status=NON_FINITE)
    if total == 0:
        return Analysis(status=ZERO)
    analysis = Analysis(**numbers)  # type: ignore[arg-type]  # all but the status are numbers
    if span > 0:  # false if NaN: no tail was found
        return analysis
    status = NO_TAIL if start > 0 else RANK_DEFICIENT
    return replace(analysis, alpha=None, ks=None, alpha_hat=None, status=status)
