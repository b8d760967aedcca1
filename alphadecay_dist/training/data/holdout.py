"""Which documents of a source are its validation set: every n-th row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, islice

from alphadecay_dist.training.data.documents import Files, rows_of


@dataclass(frozen=True)
class Holdout:
    """Every ``every``-th row, counted in each file; if no file has that many rows, over all files.

    Attributes:
        every: one of this many rows is held out.
        before: if rows are counted over all files, the number of rows before each file, and in total; else
            None.
    """

    every: int
    before: tuple[int, ...] | None

    @classmethod
    def of(cls, files: Files, every: int) -> Holdout:
        """The holdout of some files, which are read until one has ``every`` rows.

        Raises:
            UserError: a file cannot be read.
        """
        counts: list[int] = []
        for file in range(len(files)):
            counts.append(sum(1 for _ in islice(rows_of(files, file, 0), every)))
            if counts[-1] == every:
                return cls(every, None)
        return cls(every, tuple(accumulate(counts, initial=0)))

    def has(self, file: int, row: int) -> bool:
        """Whether a row is held out."""
        number = row + (self.before[file] if self.before else 0)
        return number % self.every == self.every - 1

    @property
    def advice(self) -> str:
        """What to do if nothing is held out."""
        rows = self.before[-1] if self.before else 0
        if 2 <= rows < self.every:
            return f"it has {rows} rows: set data.holdout to {rows} at most, or give data.validation"
        return "use more documents or another data.holdout, or give data.validation"
