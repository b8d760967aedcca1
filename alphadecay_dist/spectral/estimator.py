"""What can be chosen of an analysis: the fit, its beginning, FARMS' windows. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIT_NAMES = ("hill", "goodness_of_fit", "fix_finger", "fix_finger_released")


@dataclass(frozen=True)
class Windows:
    """Which sub-matrices FARMS takes, see :mod:`alphadecay_dist.spectral.farms`.

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
        """Raise a ValueError where a window is larger than a matrix of this shape; none is cut to fit."""
        if len(shape) != 2:
            raise ValueError(f"FARMS: found a weight of {len(shape)} dimensions, expected a matrix")
        if self.rows > shape[0] or self.columns > shape[1]:
            raise ValueError(
                f"FARMS: a window of {self.rows} x {self.columns} is larger than the matrix of "
                f"{' x '.join(map(str, shape))}; use fewer rows or another aspect"
            )


@dataclass(frozen=True)
class Estimator:
    """How alpha is read from a matrix.

    Attributes:
        fit: one of ``FIT_NAMES``: ``hill`` (as published), ``goodness_of_fit`` or ``fix_finger``.
        xmin_pos: for ``hill``: the tail begins at eigenvalue floor(N / xmin_pos); 2 is the median.
        windows: with FARMS, the sub-matrices whose pooled eigenvalues take the matrix's place.
        keeps_histogram: whether an analysis has the histogram of the eigenvalues.
    """

    fit: str = "hill"
    xmin_pos: float = 2.0
    windows: Windows | None = None
    keeps_histogram: bool = False

    def __post_init__(self) -> None:
        if self.fit not in FIT_NAMES:
            raise ValueError(f"fit: found {self.fit!r}, expected one of {', '.join(FIT_NAMES)}")
        if not 1 < self.xmin_pos < math.inf:
            raise ValueError(f"xmin_pos: found {self.xmin_pos}, expected a number above 1; 2 is the median")

    @property
    def reads_all(self) -> bool:
        """Whether alpha depends on the smallest eigenvalues too, which fp32 cannot tell."""
        return self.fit != "hill"

    def start(self, count: int) -> int:
        """Index of the eigenvalue that must be known for a tail: Hill's xmin, else the median."""
        return count // 2 if self.reads_all else min(int(count / self.xmin_pos), count - 1)

    def eigenvalues_of(self, shape: Sequence[int]) -> int:
        """Number of eigenvalues that a weight of this shape has: (m, n), or (out, in, height, width)."""
        if self.windows is not None:
            return self.windows.eigenvalues
        return min(shape[0], shape[1]) * math.prod(shape[2:])


PUBLISHED = Estimator()
