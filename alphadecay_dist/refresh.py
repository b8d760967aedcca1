"""What a refresh finds, how it travels between ranks, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from alphadecay_dist.decay import Assignment
from alphadecay_dist.settings import Settings
from alphadecay_dist.spectral import STATUSES, Analysis

MIXED = "mixed"  # the status of a fused weight whose parts have several


@dataclass(frozen=True)
class ModuleRefresh:
    """What one refresh found and wrote for one module.

    Attributes:
        alpha: tail exponent; None where undefined. The mean of its parts' for a fused weight or a stack.
        weight_decay: the decay written into the module's param group, the mean of its parts'.
        owner: rank that analysed the matrix, or the first of its parts.
        status: "assigned", "all_equal", or why alpha is undefined (``alphadecay_dist.spectral.STATUSES``),
            in which case the module keeps the decay that it had; "mixed" where its parts differ.
        value: what was mapped, where that is another metric than alpha.
        parts: the same for each part of a fused weight and each expert of a stack, by name.
    """

    alpha: float | None
    weight_decay: float
    owner: int
    status: str
    value: float | None = None
    parts: dict[str, ModuleRefresh] = field(default_factory=dict)


@dataclass(frozen=True)
class Refresh:
    """One refresh, equal on every rank but for ``seconds``.

    Attributes:
        step: optimizer updates finished before the weights were taken.
        written_at: optimizer updates finished before the decays were written; ``step`` unless it was lagged.
        seconds: wall-clock time on this rank, for which training stood still: of a lagged one that of the
            snapshot, of the wait for what was not ready, and of the write.
        bytes_received: bytes of weights that each rank received from others.
        modules: results by module name.
    """

    step: int
    written_at: int
    seconds: float
    bytes_received: tuple[int, ...]
    modules: dict[str, ModuleRefresh]


@dataclass(frozen=True)
class Found:
    """What an owner found of one part: alpha, the metric's value, status."""

    alpha: float | None
    value: float | None
    status: str
    owner: int

    @classmethod
    def of(cls, numbers: Sequence[float], owner: int) -> Found:
        """From the numbers that travelled, see :func:`numbers_of`."""
        alpha, value, status = numbers
        return cls(_defined(alpha), _defined(value), STATUSES[int(status)], owner)


def numbers_of(analysis: Analysis, settings: Settings) -> tuple[float, float, float]:
    """Alpha and what is mapped (NaN where undefined) and the status' number, as they travel."""
    alpha, value = analysis.alpha, settings.value_of(analysis)
    status = float(STATUSES.index(analysis.status))
    return math.nan if alpha is None else alpha, math.nan if value is None else value, status


def _defined(number: float) -> float | None:
    return None if math.isnan(number) else number


def report(
    parts: Sequence[str],
    found: Mapping[str, Found],
    assigned: Mapping[str, Assignment],
    metric: str,
    weight_decay: float,
) -> ModuleRefresh:
    """What is said of one module, and of its parts if it has several.

    Args:
        parts: its parts' names; itself for a module that is not cut.
        found: by part.
        assigned: by part.
        metric: what was mapped.
        weight_decay: the module's, the mean of its parts'.
    """
    reports = {}
    for part in parts:
        own, assignment = found[part], assigned[part]
        status = own.status if own.value is None else assignment.case
        value = None if metric == "alpha" else own.value
        reports[part] = ModuleRefresh(own.alpha, assignment.weight_decay, own.owner, status, value)
    if len(reports) == 1:
        return reports[parts[0]]
    return ModuleRefresh(
        _mean(report.alpha for report in reports.values()),
        weight_decay,
        reports[parts[0]].owner,
        reports[parts[0]].status if len({r.status for r in reports.values()}) == 1 else MIXED,
        _mean(report.value for report in reports.values()),
        reports,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are defined; None without any."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
