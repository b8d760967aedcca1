"""Eigenvalues -> the exponent of their power-law tail, and the distance between tail and power law.

Every fit takes (..., N) eigenvalues, N >= 1, one spectrum or a stack of them, and works on all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.spectral.estimator import Estimator


@dataclass(frozen=True)
class Fit:
    """Power laws p(x) ~ x^-alpha fitted to the eigenvalues from ``xmin`` on; fields of shape (...).

    Attributes:
        alpha: tail exponents, above 1; small means a heavy tail. NaN if there is no tail: it is empty,
            begins at zero or has no spread.
        xmin: smallest eigenvalues of the tails; NaN if alpha is.
        ks: Kolmogorov-Smirnov distances between tails and fitted laws, in [0, 1]; NaN if alpha is.
        tail: numbers of eigenvalues in the tails; 0 if there is no tail.
    """

    alpha: Tensor
    xmin: Tensor
    ks: Tensor
    tail: Tensor


def hill(eigenvalues: Tensor, xmin_pos: float = 2.0) -> Fit:
    """The Hill estimator at a fixed position, "PL_Alpha_Hill" (AlphaDecay, arXiv 2506.14562, section 3).

    With i = floor(N / xmin_pos) and k = N - i,
    alpha = 1 + k / (sum_{j >= i} ln lambda_j - k ln lambda_i).

    Args:
        eigenvalues: (..., N) fp64, ascending, not negative.
        xmin_pos: which eigenvalue starts the tail, above 1; 2 is the median.
    """
    start = int(eigenvalues.shape[-1] / xmin_pos)
    return _fit_from(eigenvalues, torch.full(eigenvalues.shape[:-1], start, device=eigenvalues.device))


def goodness_of_fit(eigenvalues: Tensor) -> Fit:
    """The Hill fit whose tail is nearest to its power law (Clauset, Shalizi, Newman, arXiv 0706.1062).

    Every eigenvalue but the last is tried as xmin. The smallest KS distance wins, in a tie the longest tail.

    Args:
        eigenvalues: (..., N) fp64, ascending, not negative; zeros are not candidates.
    """
    return _best_start(eigenvalues, torch.ones_like(eigenvalues, dtype=torch.bool))


def fix_finger(eigenvalues: Tensor) -> Fit:
    """Goodness of fit with xmin near the peak of the spectrum, so that a few "fingers" have no influence.

    The peak is the fullest of 100 equal bins of log10 lambda; xmin is searched from 0.95 to 1.5 times its
    lower edge.

    Args:
        eigenvalues: (..., N) fp64, ascending, not negative; zeros are left out.
    """
    peak = _histogram_peak(eigenvalues)
    return _best_start(eigenvalues, (eigenvalues >= 0.95 * peak) & (eigenvalues <= 1.5 * peak))


def fix_finger_released(eigenvalues: Tensor) -> Fit:
    """:func:`fix_finger` as in AlphaDecay's released code: the search begins at log10(0.95 peak).

    A logarithm is compared with eigenvalues, so the lower bound has practically no effect for small ones. Use
    it only to repeat published runs.

    Args:
        eigenvalues: (..., N) fp64, ascending, not negative; zeros are left out.
    """
    peak = _histogram_peak(eigenvalues)
    return _best_start(eigenvalues, (eigenvalues >= (0.95 * peak).log10()) & (eigenvalues <= 1.5 * peak))


FITS: dict[str, Callable[[Tensor], Fit]] = {
    "hill": hill,
    "goodness_of_fit": goodness_of_fit,
    "fix_finger": fix_finger,
    "fix_finger_released": fix_finger_released,
}


def fit_tail(eigenvalues: Tensor, estimator: Estimator) -> Fit:
    """The fits that an estimator chooses, of (..., N) fp64 eigenvalues, ascending, not negative."""
    if estimator.fit == "hill":
        return hill(eigenvalues, estimator.xmin_pos)
    return FITS[estimator.fit](eigenvalues)


BINS = 100  # of the histogram whose peak fix_finger looks for
TAILS_AT_ONCE = 256  # tails of 4096 eigenvalues: 8 MiB an array


def _fit_from(eigenvalues: Tensor, starts: Tensor) -> Fit:
    """The Hill fits (...) of the tails that begin at the indices ``starts`` (...); N means no tail."""
    count = eigenvalues.shape[-1]
    xmin = eigenvalues.gather(-1, starts.clamp_max(count - 1).unsqueeze(-1))
    ranks = torch.arange(count, device=starts.device) - starts.unsqueeze(-1)
    logs = torch.where(ranks >= 0, (eigenvalues / xmin).log(), 0)
    sizes = (count - starts).to(logs.dtype)  # integers over integers would be fp32
    spreads = logs.sum(-1)
    defined = (sizes > 0) & (xmin.squeeze(-1) > 0) & (spreads > 0) & spreads.isfinite()
    alpha = torch.where(defined, 1.0 + sizes / spreads, math.nan)
    ks = _distances(logs, alpha, ranks, sizes)
    return Fit(
        alpha,
        torch.where(defined, xmin.squeeze(-1), math.nan),
        torch.where(defined, ks, math.nan),
        torch.where(defined, count - starts, 0),
    )


def _best_start(eigenvalues: Tensor, allowed: Tensor) -> Fit:
    """The fits with the smallest KS distances among the ``allowed`` (..., N) starts."""
    count = eigenvalues.shape[-1]
    spectra = eigenvalues.reshape(-1, count)
    candidates = (allowed & (eigenvalues > 0)).reshape(-1, count)
    candidates[:, -1:] = False  # one eigenvalue is not a tail
    distances = torch.full_like(spectra, math.inf)
    for pairs in candidates.nonzero().split(TAILS_AT_ONCE):
        rows, starts = pairs.unbind(1)
        distances[rows, starts] = _fit_from(spectra[rows], starts).ks.nan_to_num(nan=math.inf)
    nearest = distances.amin(-1, keepdim=True)
    positions = torch.arange(count, device=spectra.device)
    is_best = (distances == nearest) & nearest.isfinite()
    first = torch.where(is_best, positions, count).amin(-1)  # argmin guarantees no order among equals
    return _fit_from(eigenvalues, first.reshape(eigenvalues.shape[:-1]))


def _histogram_peak(eigenvalues: Tensor) -> Tensor:
    """(..., 1): the lower edge of the fullest bin of log10 lambda; NaN without a positive eigenvalue."""
    positive = eigenvalues > 0
    logs = eigenvalues.log10()
    low = torch.where(positive, logs, math.inf).amin(-1, keepdim=True)
    high = torch.where(positive, logs, -math.inf).amax(-1, keepdim=True)
    width = (high - low) / BINS
    bins = ((logs - low) / width).nan_to_num(nan=0.0, neginf=0.0).long().clamp(0, BINS - 1)
    counts = torch.zeros(*eigenvalues.shape[:-1], BINS, dtype=torch.int64, device=eigenvalues.device)
    counts.scatter_add_(-1, bins, positive.long())
    positions = torch.arange(BINS, device=counts.device)
    fullest = torch.where(counts == counts.amax(-1, keepdim=True), positions, BINS).amin(-1, keepdim=True)
    return torch.where(high.isfinite(), 10 ** (low + fullest * width), math.nan)


def _distances(logs: Tensor, alpha: Tensor, ranks: Tensor, sizes: Tensor) -> Tensor:
    """Largest |F(lambda) - rank / size| with the fitted law F: the convention of the usual packages.

    Args:
        logs: (..., N) ln(lambda / xmin), 0 before the tail.
        alpha: (...) exponents.
        ranks: (..., N) places in the tail, negative before it.
        sizes: (...) lengths of the tails.
    """
    fitted = -torch.expm1((1.0 - alpha).unsqueeze(-1) * logs)
    return torch.where(ranks >= 0, (fitted - ranks / sizes.unsqueeze(-1)).abs(), 0).amax(-1)
