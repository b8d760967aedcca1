"""FARMS: eigenvalues of sub-matrices of one aspect ratio, pooled (arXiv 2506.06280).

The alpha of a random matrix depends on its aspect ratio: at initialisation it is 3.0 for a 1376 x 512 matrix
and 2.1 for a 512 x 512 one. Windows of one shape for all matrices remove this bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.spectral.esd import ESD, esd, pooled


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
        if self.rows < 1 or not 0 < self.aspect < math.inf or min(self.grid) < 1:
            raise ValueError(
                f"farms: found rows {self.rows}, aspect {self.aspect}, grid {self.grid}; "
                "expected rows >= 1, aspect > 0 and at least one window along each side"
            )

    @property
    def columns(self) -> int:
        """Columns of a window."""
        return max(1, round(self.rows / self.aspect))

    @property
    def eigenvalues(self) -> int:
        """Number of pooled eigenvalues."""
        return min(self.rows, self.columns) * self.grid[0] * self.grid[1]

    def check_fit(self, shape: Sequence[int]) -> None:
        """Raise a ValueError if a window is larger than a matrix of this shape; none is cut to fit."""
        if len(shape) != 2:
            raise ValueError(f"FARMS: found a weight of {len(shape)} dimensions, expected a matrix")
        if self.rows > shape[0] or self.columns > shape[1]:
            raise ValueError(
                f"FARMS: a window of {self.rows} x {self.columns} is larger than the matrix of "
                f"{' x '.join(map(str, shape))}; use fewer rows or another aspect"
            )


def farms(matrix: Tensor, windows: Windows) -> ESD:
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
