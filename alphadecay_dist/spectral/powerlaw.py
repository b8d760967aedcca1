"""Eigenvalues -> the exponent of their power-law tail, and how far the tail is from that power law."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fit:
    """A power law p(x) ~ x^-alpha fitted to the eigenvalues from ``xmin`` on.

    Attributes:
        alpha: tail exponent, above 1; small means a heavy tail.
        xmin: smallest eigenvalue of the tail.
        ks: Kolmogorov-Smirnov distance between the tail and the fitted law, in [0, 1].
        tail: number of eigenvalues in the tail.
    """

    alpha: float
    xmin: float
    ks: float
    tail: int


def hill(eigenvalues: Tensor, xmin_pos: float = 2.0) -> Fit | None:
    """The Hill estimator at a fixed position, "PL_Alpha_Hill" (AlphaDecay, arXiv 2506.14562, section 3).

    With i = floor(N / xmin_pos) and k = N - i,
    alpha = 1 + k / (sum_{j >= i} ln lambda_j - k ln lambda_i).

    Args:
        eigenvalues: (N,) fp64, ascending, not negative.
        xmin_pos: which eigenvalue starts the tail; 2 is the median.

    Returns:
        The fit, or None where the tail is empty, begins at zero or has no spread.
    """
    count = eigenvalues.numel()
    start = int(count / xmin_pos)
    tail = eigenvalues[start:]
    if tail.numel() == 0 or not bool(tail[0] > 0):
        return None
    logs = tail.log()
    spread = float((logs - logs[0]).sum())
    if not spread > 0:
        return None
    alpha = 1.0 + tail.numel() / spread
    return Fit(alpha, float(tail[0]), _ks_distance(logs, alpha), tail.numel())


def _ks_distance(log_tail: Tensor, alpha: float) -> float:
    """Largest gap between the fitted and the empirical distribution function of the tail."""
    count = log_tail.numel()
    fitted = -torch.expm1((1.0 - alpha) * (log_tail - log_tail[0]))
    steps = torch.arange(count + 1, dtype=log_tail.dtype, device=log_tail.device) / count
    return float(torch.maximum((fitted - steps[:-1]).abs(), (fitted - steps[1:]).abs()).max())
