"""FARMS: eigenvalues of sub-matrices of one aspect ratio, pooled (arXiv 2506.06280).

The alpha of a random matrix depends on its aspect ratio: at initialisation it is 3.0 for a 1376 x 512 matrix
and 2.1 for a 512 x 512 one. Windows of one shape for all matrices remove this bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alphadecay_dist.spectral.esd import ESD, esd, pooled
from alphadecay_dist.spectral.estimator import Windows


def pooled_windows(matrix: Tensor, windows: Windows) -> ESD:
    """Eigenvalues of the correlation matrices of all windows together.

    Args:
        matrix: (m, n), as for :func:`alphadecay_dist.spectral.esd.esd`.
        windows: shape and number of the sub-matrices.

    Returns:
        The pooled eigenvalues, ascending: ``windows.eigenvalues`` of them, each with the error of its window.

    Raises:
        ValueError: a window is larger than the matrix.
    """
    windows.check_fit(matrix.shape)
    rows, columns = windows.rows, windows.columns
    tops = _starts(matrix.shape[0] - rows, windows.grid[0])
    lefts = _starts(matrix.shape[1] - columns, windows.grid[1])
    stack = torch.stack([matrix[t : t + rows, left : left + columns] for t in tops for left in lefts])
    return pooled(esd(stack))


def _starts(room: int, count: int) -> list[int]:
    """Evenly spaced starts from 0 to ``room``; the middle for a single one."""
    if count == 1:
        return [room // 2]
    return [round(i * room / (count - 1)) for i in range(count)]
