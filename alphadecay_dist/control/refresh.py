"""What a refresh finds, how it travels between ranks, what is said of it, and its line in decay.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from alphadecay_dist.decay import Assignment
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.spectral import STATUSES, Analysis

DECAY = "decay.jsonl"  # a line a refresh
ASSIGNED = "assigned"  # the status of what got the decay of its own alpha
WRITTEN = (ASSIGNED, "all_equal")  # statuses of modules whose decay was found
NOT_REFRESHED = "not_refreshed"  # the status before the first refresh
UNKNOWN = "unknown"  # that of an undefined alpha in states that had no statuses yet
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

    @property
    def undefined(self) -> int:
        """Number of modules that kept their decay, or a part of theirs: their spectra are undefined."""
        return sum(
            any(found.status not in WRITTEN for found in module.parts.values() or [module])
            for module in self.modules.values()
        )

    def as_dict(self) -> dict[str, Any]:
        """The record of a line in decay.jsonl, as docs/engines.md describes it."""
        record = asdict(self)
        record["undefined"] = self.undefined
        record["modules"] = {name: _present(module) for name, module in record["modules"].items()}
        return record


def _present(module: dict[str, Any]) -> dict[str, Any]:
    """A module's record without a value that is alpha's own and without parts where it is whole."""
    parts = {name: _present(part) for name, part in module.pop("parts").items()}
    value = module.pop("value")
    return {**module, **({} if value is None else {"value": value}), **({"parts": parts} if parts else {})}


def log_refresh(folder: str | Path, refresh: Refresh | None) -> None:
    """Add a refresh to ``decay.jsonl`` in a directory, which ``alphadecay report`` draws; on rank 0 alone.

    Args:
        folder: made where it is not there.
        refresh: what ``step()`` or ``refresh()`` returned; None adds nothing.
    """
    if refresh is None or (dist.is_initialized() and dist.get_rank() != 0):
        return
    path = Path(folder) / DECAY
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(refresh.as_dict(), allow_nan=False) + "\n")


@dataclass(frozen=True)
class TunedModule:
    """A tuned module as it is now.

    Attributes:
        name: of the module, or of the parameter where a module has several.
        shape: of the whole weight, whatever this rank holds of it.
        alpha: tail exponent at the last refresh; None where undefined or before the first. The mean of its
            parts' for a fused weight or a stack.
        weight_decay: what applies to it now, the mean of its parts'; with ``premultiply`` too.
        status: as in :class:`ModuleRefresh`; "not_refreshed" before the first refresh, "unknown" where a
            state of an earlier version does not tell.
    """

    name: str
    shape: tuple[int, ...]
    alpha: float | None
    weight_decay: float
    status: str


@dataclass(frozen=True)
class Measurement:
    """What an owner found of one part: alpha, the metric's value, status."""

    alpha: float | None
    value: float | None
    status: str
    owner: int

    @classmethod
    def decode(cls, numbers: Sequence[float], owner: int) -> Measurement:
        """From the numbers that travelled, see :func:`encode`."""
        alpha, value, status = numbers
        return cls(_defined(alpha), _defined(value), STATUSES[int(status)], owner)


def encode(analysis: Analysis, settings: Settings) -> tuple[float, float, float]:
    """Alpha and what is mapped (NaN where undefined) and the status' number, as they travel."""
    alpha, value = analysis.alpha, settings.value_of(analysis)
    status = float(STATUSES.index(analysis.status))
    return math.nan if alpha is None else alpha, math.nan if value is None else value, status


def _defined(number: float) -> float | None:
    return None if math.isnan(number) else number


def report(
    parts: Sequence[str],
    found: Mapping[str, Measurement],
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
        status = status_of(own, assignment)
        value = None if metric == "alpha" else own.value
        reports[part] = ModuleRefresh(own.alpha, assignment.weight_decay, own.owner, status, value)
    if len(reports) == 1:
        return reports[parts[0]]
    return ModuleRefresh(
        mean(report.alpha for report in reports.values()),
        weight_decay,
        reports[parts[0]].owner,
        common(report.status for report in reports.values()),
        mean(report.value for report in reports.values()),
        reports,
    )


def status_of(found: Measurement, assignment: Assignment) -> str:
    """The status of one part."""
    return found.status if found.value is None else assignment.case


def common(statuses: Iterable[str]) -> str:
    """The status of a module from those of its parts."""
    different = set(statuses)
    return different.pop() if len(different) == 1 else MIXED


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are defined; None without any."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
