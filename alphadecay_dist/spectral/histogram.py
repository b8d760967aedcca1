"""Eigenvalues and their fitted tail -> a histogram small enough to be kept at every refresh."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alphadecay_dist.spectral.powerlaw import Fit
from alphadecay_dist.spectral.report import BINS, Histogram


def histograms(eigenvalues: Tensor, fit: Fit) -> list[Histogram | None]:
    """The histogram of each spectrum; None where no eigenvalue is positive, or one is not finite.

    Args:
        eigenvalues: (B, N) fp64, ascending, with 0 for those that are lost in rounding: these are in no bin.
        fit: (B,) tails.
    """
    logs = eigenvalues.log10()  # (B, N), -inf for those
    found = logs.isfinite()
    low = torch.where(found, logs, math.inf).amin(-1, keepdim=True)
    high = torch.where(found, logs, -math.inf).amax(-1, keepdim=True)
    width = (high - low) / BINS  # 0 where all are equal: they are in the first bin
    bins = ((logs - low) / width).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).long().clamp(0, BINS - 1)
    counts = torch.zeros(len(logs), BINS, dtype=torch.int64, device=logs.device)
    counts.scatter_add_(-1, bins, found.long())
    numbers = torch.stack([low[:, 0], high[:, 0], fit.alpha, fit.xmin, fit.tail.to(logs.dtype)], dim=1)
    return [
        Histogram.decode([logs.shape[-1], *own, *row]) if math.isfinite(own[1]) else None
        for own, row in zip(numbers.tolist(), counts.tolist(), strict=True)
    ]
