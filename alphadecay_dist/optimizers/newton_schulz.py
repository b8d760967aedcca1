"""Newton-Schulz iterations of many matrices at once, and what goes with them in Muon: pure.

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by nearly the orthogonal
matrix that is nearest to it. ``torch.optim.Muon`` does so one matrix after the other, in bf16. Here equal
shapes go through the same products together, and each comes out as it does there, bit for bit on a CPU:
``tests/optimizers/test_newton_schulz.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, as torch.optim.Muon has them
EPS = 1e-7
STEPS = 5
ORIGINAL, MATCH_RMS_ADAMW = "original", "match_rms_adamw"
ADJUSTMENTS = (ORIGINAL, MATCH_RMS_ADAMW)


def orthogonalize(
    matrices: Sequence[Tensor],
    steps: int = STEPS,
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = EPS,
) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of those given: singular values of 0.7 to 1.2.

    Args:
        matrices: B of them, (m, n) each, of one type, in which all is computed.
        steps: iterations.
        coefficients: (a, b, c): x becomes a x + b x^3 + c x^5 for each singular value.
        eps: least norm to divide by.

    Returns:
        (B, m, n).
    """
    a, b, c = coefficients
    tall = matrices[0].shape[0] > matrices[0].shape[1]
    # Norms one by one: a sum over a batch is made in another order, and rounds to another bf16 number.
    norms = torch.stack([matrix.norm() for matrix in matrices]).clamp(min=eps)  # (B,)
    x = torch.stack(tuple(matrices)) / norms[:, None, None]
    # Tall ones are views that are transposed, as torch's: products of a copy now and then round otherwise.
    x = x.mT if tall else x  # (B, m, n), m <= n
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # (B, m, m)
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if tall else x


def work_of(shape: Sequence[int], steps: int = STEPS) -> float:
    """Floating-point operations of the iterations of one (m, n) matrix."""
    small, large = sorted(shape)
    return steps * (4.0 * small**2 * large + 2.0 * small**3)


def rate_ratio(adjustment: str | None, shape: Sequence[int]) -> float:
    """What the learning rate of an (m, n) matrix is multiplied with.

    Args:
        adjustment: torch.optim.Muon's ``adjust_lr_fn``: ``original`` (None is the same) is
            sqrt(max(1, m / n)); ``match_rms_adamw`` is 0.2 sqrt(max(m, n)), with which an update is about
            as large as AdamW's.
        shape: (m, n).
    """
    rows, columns = shape
    if adjustment == MATCH_RMS_ADAMW:
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
