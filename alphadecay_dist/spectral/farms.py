"""FARMS: eigenvalues of sub-matrices of one aspect ratio, pooled (arXiv 2506.06280).

The alpha of a random matrix depends on its aspect ratio: at initialisation a 1376 x 512 matrix has 3.0, a
512 x 512 one 2.1. Windows of one shape for all matrices remove that bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.spectral.esd import ESD, esd


@dataclass(frozen=True)
class Windows:
    """Which sub-matrices to take.

    Attributes:
        rows: rows of a window.
        aspect: rows over columns; the columns are rounded.
        grid: windows along the rows and along the columns, evenly spaced from edge to edge.
    """

    rows: int
    aspect: float = 1.0
    grid: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.rows < 1 or not self.aspect > 0 or min(self.grid) < 1:
            raise ValueError(
                f"FARMS: found rows {self.rows}, aspect {self.aspect}, grid {self.grid}; "
                "expected rows >= 1, aspect > 0 and at least one window along each side"
            )

    @property
    def columns(self) -> int:
        """Columns of a window."""
        return max(1, round(self.rows / self.aspect))


def farms(matrix: Tensor, windows: Windows) -> ESD:
    """Eigenvalues of the correlation matrices of all windows together.

    Args:
        matrix: (m, n), as for :func:`alphadecay_dist.spectral.esd.esd`.
        windows: shape and number of the sub-matrices.

    Returns:
        The pooled eigenvalues, ascending: grid rows * grid columns * min(window rows, window columns) of
        them, and the round-off of the least exact window.

    Raises:
        ValueError: a window is larger than the matrix; it is never cut to fit.
    """
    shape = (windows.rows, windows.columns)
    if shape[0] > matrix.shape[0] or shape[1] > matrix.shape[1]:
        raise ValueError(
            f"FARMS: a window of {shape[0]} x {shape[1]} is larger than the matrix of "
            f"{matrix.shape[0]} x {matrix.shape[1]}; use fewer rows or another aspect"
        )
    tops = _starts(matrix.shape[0] - shape[0], windows.grid[0])
    lefts = _starts(matrix.shape[1] - shape[1], windows.grid[1])
    parts = [esd(matrix[t : t + shape[0], left : left + shape[1]]) for t in tops for left in lefts]
    pooled = torch.cat([part.values for part in parts]).sort().values
    return ESD(pooled, max(part.eps for part in parts))


def _starts(room: int, count: int) -> list[int]:
    """Evenly spaced beginnings from 0 to ``room``; the middle for a single one."""
    if count == 1:
        return [room // 2]
    return [round(i * room / (count - 1)) for i in range(count)]
