"""What the analysis of one weight says: numbers by name, and a status where they are undefined. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_EIGENVALUES = 50  # fewer than these carry no tail to fit (as in the released code)

OK = "ok"
TOO_SMALL = "too_small"  # fewer than MIN_EIGENVALUES eigenvalues
SHARDED = "sharded"  # a DTensor: this rank holds a part of the matrix alone
NON_FINITE = "non_finite"  # a NaN or an infinity among the entries, or their squares beyond fp64
ZERO = "zero"  # nothing but zeros, or their squares below fp64
RANK_DEFICIENT = "rank_deficient"  # the tail begins at an eigenvalue that is lost in rounding
NO_TAIL = "no_tail"  # all eigenvalues of the tail are equal up to rounding
FAILED = "failed"  # the eigensolver gave up, or memory was short
STATUSES = (OK, TOO_SMALL, NON_FINITE, ZERO, RANK_DEFICIENT, NO_TAIL, FAILED, SHARDED)


BINS = 40  # of a histogram


@dataclass(frozen=True)
class Histogram:
    """A spectrum in ``BINS`` equal bins of log10 lambda, with the tail that was fitted to it.

    Attributes:
        eigenvalues: how many there are; those that are lost in rounding are in no bin.
        low: log10 of the smallest in a bin, where the first bin begins.
        high: log10 of the largest, where the last bin ends.
        alpha: exponent of the tail; None where it has none.
        xmin: the eigenvalue that the tail begins with; None where alpha is.
        tail: number of eigenvalues in the tail.
        counts: (BINS,) eigenvalues in each bin.
    """

    eigenvalues: int
    low: float
    high: float
    alpha: float | None
    xmin: float | None
    tail: int
    counts: tuple[int, ...]

    def encode(self) -> list[float]:
        """As ``ENCODED`` numbers, which all are exact in fp64; NaN for None."""
        fit = [math.nan if number is None else number for number in (self.alpha, self.xmin)]
        return [self.eigenvalues, self.low, self.high, *fit, self.tail, *self.counts]

    @classmethod
    def decode(cls, numbers: Sequence[float]) -> Histogram | None:
        """From the numbers that :meth:`encode` gave; None where they are ``NO_HISTOGRAM``."""
        eigenvalues, low, high, alpha, xmin, tail, *counts = numbers
        if not eigenvalues:
            return None
        if math.isnan(alpha):
            return cls(int(eigenvalues), low, high, None, None, 0, tuple(map(int, counts)))
        return cls(int(eigenvalues), low, high, alpha, xmin, int(tail), tuple(map(int, counts)))


ENCODED = 6 + BINS
NO_HISTOGRAM = (0.0,) * ENCODED


@dataclass(frozen=True)
class Analysis:
    """What the spectrum of one weight says. Undefined values are None; no NaN and no infinity is in it.

    With FARMS and for convolutions every value is that of the pooled eigenvalues.

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
        histogram: of the eigenvalues, where the estimator keeps it.
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
    histogram: Histogram | None = None


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
