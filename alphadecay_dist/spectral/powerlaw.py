"""Eigenvalues -> the exponent of their power-law tail, and how far the tail is from that power law."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    return _fit_from(eigenvalues, int(eigenvalues.numel() / xmin_pos))


def goodness_of_fit(eigenvalues: Tensor) -> Fit | None:
    """The Hill fit whose tail is nearest to its power law (Clauset, Shalizi, Newman, arXiv 0706.1062).

    Every eigenvalue but the last is tried as xmin; the smallest KS distance wins, at a tie the longest tail.

    Args:
        eigenvalues: (N,) fp64, ascending, not negative; zeros are no candidates.

    Returns:
        The fit, or None where no tail has a spread.
    """
    return _best_start(eigenvalues, torch.ones_like(eigenvalues, dtype=torch.bool))


def fix_finger(eigenvalues: Tensor) -> Fit | None:
    """Goodness of fit with xmin near the peak of the spectrum, so that a few "fingers" do not decide it.

    The peak is the fullest of 100 equal bins of log10 lambda; xmin is searched from 0.95 to 1.5 times its
    lower edge.

    Args:
        eigenvalues: (N,) fp64, ascending, not negative; zeros are left out.

    Returns:
        The fit, or None where no tail that begins near the peak has a spread.
    """
    peak = _histogram_peak(eigenvalues)
    if peak is None:
        return None
    return _best_start(eigenvalues, (eigenvalues >= 0.95 * peak) & (eigenvalues <= 1.5 * peak))


FITS: dict[str, Callable[[Tensor], Fit | None]] = {
    "hill": hill,
    "goodness_of_fit": goodness_of_fit,
    "fix_finger": fix_finger,
}


def _fit_from(eigenvalues: Tensor, start: int) -> Fit | None:
    """The Hill fit of the tail that begins at index ``start``."""
    tail = eigenvalues[start:]
    if tail.numel() == 0 or not bool(tail[0] > 0):
        return None
    logs = tail.log()
    spread = float((logs - logs[0]).sum())
    if not spread > 0:
        return None
    alpha = 1.0 + tail.numel() / spread
    return Fit(alpha, float(tail[0]), float(_ks_distances(logs - logs[0], alpha).max()), tail.numel())


def _best_start(eigenvalues: Tensor, allowed: Tensor) -> Fit | None:
    """The fit with the smallest KS distance among the allowed beginnings, all tried at once.

    Row s of the (S, N) arrays is the tail that begins at the s-th allowed eigenvalue.
    """
    count = eigenvalues.numel()
    starts = torch.nonzero(allowed & (eigenvalues > 0)).flatten()
    starts = starts[starts < count - 1]
    if not starts.numel():
        return None
    logs = eigenvalues.clamp_min(torch.finfo(eigenvalues.dtype).tiny).log()
    sizes = (count - starts).to(logs.dtype)
    spreads = logs.flip(0).cumsum(0).flip(0)[starts] - sizes * logs[starts]
    alphas = 1.0 + sizes / spreads
    best = (math.inf, -1)
    for rows in torch.arange(starts.numel()).split(_ROWS_AT_ONCE):
        tails = (logs - logs[starts[rows], None]).clamp_min(0)
        ranks = torch.arange(count, dtype=logs.dtype, device=logs.device) - starts[rows, None]
        gaps = _gaps(tails, alphas[rows, None], ranks, sizes[rows, None])
        gaps = torch.where(ranks >= 0, gaps, 0).amax(1)
        gaps = torch.where(spreads[rows] > 0, gaps, math.inf)
        smallest = int(gaps.argmin())
        best = min(best, (float(gaps[smallest]), int(starts[rows[smallest]])))
    return _fit_from(eigenvalues, best[1]) if best[1] >= 0 else None


_ROWS_AT_ONCE = 256  # tails of 4096 eigenvalues: 8 MiB an array


def _histogram_peak(eigenvalues: Tensor) -> float | None:
    """The lower edge of the fullest of 100 bins of log10 lambda; None without a positive eigenvalue."""
    logs = eigenvalues[eigenvalues > 0].log10().cpu()
    if not logs.numel():
        return None
    counts, edges = torch.histogram(logs, bins=100)
    return float(10 ** edges[int(counts.argmax())])


def _ks_distances(logs: Tensor, alpha: float) -> Tensor:
    """Gaps between the distribution functions at each eigenvalue of one tail, given as ln(lambda / xmin)."""
    ranks = torch.arange(logs.numel(), dtype=logs.dtype, device=logs.device)
    return _gaps(logs, alpha, ranks, logs.numel())


def _gaps(logs: Tensor, alpha: Tensor | float, ranks: Tensor, size: Tensor | float) -> Tensor:
    """|F(lambda) - rank / size|, with F the fitted law: the convention of the field's packages."""
    return (-torch.expm1((1.0 - alpha) * logs) - ranks / size).abs()
