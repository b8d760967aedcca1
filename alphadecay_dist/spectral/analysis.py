"""One weight -> its analysis: alpha if it is defined, else a status that says why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alphadecay_dist.errors import warn
from alphadecay_dist.spectral.esd import ESD, conv_esd, esd
from alphadecay_dist.spectral.farms import Windows, farms
from alphadecay_dist.spectral.metrics import (
    alpha_hat,
    frobenius_norm,
    log_norm,
    matrix_entropy,
    nuclear_to_frobenius,
    spectral_norm,
    stable_rank,
)
from alphadecay_dist.spectral.powerlaw import FITS, Fit, hill
from alphadecay_dist.spectral.sharded import is_sharded

# fp32 is used if it moves alpha by less than this, as estimated by _doubtful(). The error was up to 1.5 times
# the estimate for 1500 matrices (random, heavy-tailed, spiked and trained, 50 x 50 to 768 x 768), at four
# positions of xmin and with the LAPACK kernels of several processors.
ALPHA_ERROR = 6.5e-6

MIN_EIGENVALUES = 50  # fewer have no tail to fit (as in the released code)

OK = "ok"
TOO_SMALL = "too_small"  # fewer than MIN_EIGENVALUES eigenvalues
SHARDED = "sharded"  # a DTensor: this rank has only a part of the matrix
NON_FINITE = "non_finite"  # an entry is NaN or infinite, or the squares overflow fp64
ZERO = "zero"  # all entries are zero, or the squares underflow fp64
RANK_DEFICIENT = "rank_deficient"  # the tail begins at an eigenvalue below the rounding error
NO_TAIL = "no_tail"  # all eigenvalues of the tail are equal, up to rounding
FAILED = "failed"  # the eigensolver did not converge, or memory was short
STATUSES = (OK, TOO_SMALL, NON_FINITE, ZERO, RANK_DEFICIENT, NO_TAIL, FAILED, SHARDED)


@dataclass(frozen=True)
class Estimator:
    """How alpha is estimated from a matrix.

    Attributes:
        fit: a name of ``FITS``: ``hill`` (as published), ``goodness_of_fit`` or ``fix_finger``.
        xmin_pos: for ``hill``: the tail begins at eigenvalue floor(N / xmin_pos); 2 is the median.
        windows: with FARMS, the sub-matrices whose pooled eigenvalues replace those of the matrix.
    """

    fit: str = "hill"
    xmin_pos: float = 2.0
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit: found {self.fit!r}, expected one of {', '.join(FITS)}")
        if not 1 < self.xmin_pos < math.inf:
            raise ValueError(f"xmin_pos: found {self.xmin_pos}, expected a number above 1; 2 is the median")

    @property
    def reads_all(self) -> bool:
        """Whether alpha depends on the smallest eigenvalues too, which fp32 cannot resolve."""
        return self.fit != "hill"

    def start(self, count: int) -> int:
        """Index of the eigenvalue that must be known for a tail to exist: Hill's xmin, else the median."""
        return count // 2 if self.reads_all else min(int(count / self.xmin_pos), count - 1)

    def eigenvalues_of(self, shape: Sequence[int]) -> int:
        """Number of eigenvalues that a weight of this shape has: (m, n), or (out, in, height, width)."""
        if self.windows is not None:
            return self.windows.eigenvalues
        return min(shape[0], shape[1]) * math.prod(shape[2:])

    def densities_of(self, weights: Tensor) -> ESD:
        """The (B, N) spectra of weights of one shape: of their matrices, windows or kernel positions."""
        if self.windows is None and weights.ndim == 3:
            return esd(weights)
        rows = [conv_esd(w) if self.windows is None else farms(w, self.windows) for w in weights]
        return ESD(torch.stack([row.values for row in rows]), torch.stack([row.error for row in rows]))

    def fitted(self, eigenvalues: Tensor) -> Fit:
        """The fits of (..., N) eigenvalues."""
        return hill(eigenvalues, self.xmin_pos) if self.fit == "hill" else FITS[self.fit](eigenvalues)


PUBLISHED = Estimator()


@dataclass(frozen=True)
class Analysis:
    """What the spectrum of one weight says. Undefined values are None; no value is NaN or infinite.

    With FARMS and for convolutions, every value is computed from the pooled eigenvalues.

    Attributes:
        alpha: power-law exponent of the tail; None unless ``status`` is "ok".
        ks: Kolmogorov-Smirnov distance of that fit.
        stable_rank: squared Frobenius over squared spectral norm.
        spectral_norm: largest singular value.
        frobenius_norm: root of the sum of squares of the entries.
        log_norm: log10 of the squared Frobenius norm.
        matrix_entropy: entropy of the eigenvalues over its largest value, in [0, 1].
        nuclear_to_frobenius: squared nuclear over squared Frobenius norm.
        alpha_hat: softplus(alpha log10 lambda_max); None if alpha is.
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


METRICS = (
    "alpha",
    "alpha_hat",
    "stable_rank",
    "spectral_norm",
    "frobenius_norm",
    "log_norm",
    "matrix_entropy",
    "nuclear_to_frobenius",
)


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
        densities = estimator.densities_of(weights.double())
    else:
        densities = estimator.densities_of(weights)
        for row in _doubtful(densities, estimator).nonzero().flatten().tolist():
            exact = estimator.densities_of(weights[row : row + 1].double())
            densities.values[row], densities.error[row] = exact.values[0], exact.error[0]
    working = torch.float64 if weights.dtype == torch.float64 else torch.float32
    return _reports(densities, torch.finfo(working).eps, estimator)


def _doubtful(densities: ESD, estimator: Estimator) -> Tensor:
    """(B,) whether fp32 may have moved alpha too far, or made it undefined.

    An error d of the eigenvalues moves Hill's sum of k logarithms by up to k d / xmin, and so alpha by
    (alpha - 1)^2 d / xmin. The eigensolver's part of d is proportional to the largest eigenvalue. The Gram
    matrix's part is proportional to its diagonal, the mean eigenvalue. The two factors are measured.
    """
    fit = estimator.fitted(_known(densities))
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
    fit = estimator.fitted(known)
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
    return [_report(dict(zip(columns, row, strict=True))) for row in rows]


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
