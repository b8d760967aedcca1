"""What a refresh finds, how it travels between ranks, what is said of it, and its line in decay.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from alphadecay_dist.decay import Assignment
from alphadecay_dist.decay.assign import MEASURED
from alphadecay_dist.decay.policies import MATRIX_RATE
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.spectral import METRICS, STATUSES, Analysis, Histogram
from alphadecay_dist.spectral.report import OK

DECAY = "decay.jsonl"  # a line a refresh
SPECTRA = "spectra.jsonl"  # a line a refresh whose histograms are kept
ASSIGNED = "assigned"  # the status of what got the decay of its own alpha
WRITTEN = (ASSIGNED, "all_equal", MEASURED)  # statuses of modules whose values were found
NOT_REFRESHED = "not_refreshed"  # the status before the first refresh
UNKNOWN = "unknown"  # that of an undefined alpha in states that had no statuses yet
MIXED = "mixed"  # the status of a fused weight whose parts have several


@dataclass(frozen=True)
class ModuleRefresh:
    """What one refresh found and wrote for one module.

    Attributes:
        alpha: tail exponent; None where undefined. The mean of its parts' for a fused weight or a stack.
        weight_decay: the decay written into the module's param group, the mean of its parts'; None where the
            policy moves nothing.
        owner: rank that analysed the matrix, or the first of its parts.
        status: "assigned", "all_equal", "measured" where nothing was to be assigned,
            or why alpha is undefined (``alphadecay_dist.spectral.STATUSES``),
            in which case the module keeps the decay that it had; "mixed" where its parts differ.
        value: what was mapped, where that is another metric than alpha.
        lr_ratio: its learning rate in base learning rates, where the policy moves that.
        metrics: every metric of the spectrum by name, where the policy only watches; None where undefined.
        parts: the same for each part of a fused weight and each expert of a stack, by name.
    """

    alpha: float | None
    weight_decay: float | None
    owner: int
    status: str
    value: float | None = None
    lr_ratio: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
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
        histograms: of the spectra by part, those that there are; see ``AlphaDecay(..., histograms=True)``.
    """

    step: int
    written_at: int
    seconds: float
    bytes_received: tuple[int, ...]
    modules: dict[str, ModuleRefresh]
    histograms: dict[str, Histogram] = field(default_factory=dict)

    @property
    def undefined(self) -> int:
        """Number of modules that kept their decay, or a part of theirs: their spectra are undefined."""
        return sum(
            any(found.status not in WRITTEN for found in module.parts.values() or [module])
            for module in self.modules.values()
        )

    def as_dict(self) -> dict[str, Any]:
        """The record of a line in decay.jsonl, as docs/engines.md describes it."""
        record = asdict(replace(self, histograms={}))
        del record["histograms"]
        record["undefined"] = self.undefined
        record["modules"] = {name: _present(module) for name, module in record["modules"].items()}
        return record

    def histograms_as_dict(self) -> dict[str, Any]:
        """The record of a line in spectra.jsonl, as docs/report.md describes it."""
        modules = {name: asdict(own) for name, own in self.histograms.items()}
        return {"step": self.step, "written_at": self.written_at, "modules": modules}


def _present(module: dict[str, Any]) -> dict[str, Any]:
    """A module's record without what it has not: a value of its own, a rate, metrics, parts."""
    parts = {name: _present(part) for name, part in module.pop("parts").items()}
    optional = {key: module.pop(key) for key in ("value", "lr_ratio", "metrics")} | {"parts": parts}
    return module | {key: value for key, value in optional.items() if value not in (None, {})}


def log_refresh(folder: str | Path, refresh: Refresh | None) -> None:
    """Add a refresh to ``decay.jsonl`` in a directory, which ``alphadecay report`` draws; on rank 0 alone.

    Its histograms, where it has them, go to ``spectra.jsonl``.

    Args:
        folder: made where it is not there.
        refresh: what ``step()`` or ``refresh()`` returned; None adds nothing.
    """
    if refresh is None or (dist.is_initialized() and dist.get_rank() != 0):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    records = {DECAY: refresh.as_dict(), SPECTRA: refresh.histograms and refresh.histograms_as_dict()}
    for name, record in records.items():
        if record:
            with (Path(folder) / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")


@dataclass(frozen=True)
class TunedModule:
    """A tuned module as it is now.

    Attributes:
        name: of the module, or of the parameter where a module has several.
        shape: of the whole weight, whatever this rank holds of it.
        alpha: tail exponent at the last refresh; None where undefined or before the first. The mean of its
            parts' for a fused weight or a stack.
        weight_decay: what applies to it now, the mean of its parts'; with ``premultiply`` too. None where the
            policy moves nothing.
        status: as in :class:`ModuleRefresh`; "not_refreshed" before the first refresh, "unknown" where a
            state of an earlier version does not tell.
        lr_ratio: its learning rate in base learning rates, where the policy moves that.
    """

    name: str
    shape: tuple[int, ...]
    alpha: float | None
    weight_decay: float | None
    status: str
    lr_ratio: float | None = None


@dataclass(frozen=True)
class Measurement:
    """What was found of one part: alpha, the value that is mapped, status, and who found it; more by name."""

    alpha: float | None
    value: float | None
    status: str
    owner: int
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    histogram: Histogram | None = None

    @classmethod
    def decode(cls, numbers: Sequence[float], owner: int) -> Measurement:
        """From the numbers that travelled, see :func:`encode`."""
        alpha, value, status, *more = numbers
        metrics = dict(zip(METRICS, map(_defined, more), strict=True))
        return cls(_defined(alpha), _defined(value), STATUSES[int(status)], owner, metrics)


ENCODED_LENGTH = 3 + len(METRICS)  # how many numbers of a part travel


def encode(analysis: Analysis, settings: Settings) -> list[float]:
    """Alpha, what is mapped, the status' number and every metric, as they travel; NaN where undefined."""
    status = float(STATUSES.index(analysis.status))
    metrics = [_or_nan(getattr(analysis, metric)) for metric in METRICS]
    return [_or_nan(analysis.alpha), _or_nan(settings.value_of(analysis)), status, *metrics]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _defined(number: float) -> float | None:
    return None if math.isnan(number) else number


def report(
    parts: Sequence[str],
    found: Mapping[str, Measurement],
    assigned: Mapping[str, Assignment],
    settings: Settings,
    number: float,
) -> ModuleRefresh:
    """What is said of one module, and of its parts if it has several.

    Args:
        parts: its parts' names; itself for a module that is not cut.
        found: by part.
        assigned: by part.
        settings: of the policy.
        number: what the module got, the mean of its parts'.
    """
    by_alpha = settings.reads_spectra and settings.metric == "alpha"
    reports = {}
    for part in parts:
        own, assignment = found[part], assigned[part]
        decay, ratio = moved(settings, assignment.weight_decay)
        value = None if by_alpha else own.value
        status = status_of(own, assignment)
        metrics = dict(own.metrics) if settings.row.moves is None else {}
        reports[part] = ModuleRefresh(own.alpha, decay, own.owner, status, value, ratio, metrics)
    if len(reports) == 1:
        return reports[parts[0]]
    decay, ratio = moved(settings, number)
    return ModuleRefresh(
        mean(report.alpha for report in reports.values()),
        decay,
        reports[parts[0]].owner,
        common(report.status for report in reports.values()),
        mean(report.value for report in reports.values()),
        ratio,
        parts=reports,
    )


def moved(settings: Settings, number: float) -> tuple[float | None, float | None]:
    """What a module's number is: its decay, and its learning rate where the policy moves that instead."""
    if settings.row.moves is None:
        return None, None
    return (settings.weight_decay, number) if settings.row.moves == MATRIX_RATE else (number, None)


def status_of(found: Measurement, assignment: Assignment) -> str:
    """The status of one part: why its value is undefined, else which case of the map it was."""
    undefined = found.value is None and found.status != OK
    return found.status if undefined else assignment.case


def common(statuses: Iterable[str]) -> str:
    """The status of a module from those of its parts."""
    different = set(statuses)
    return different.pop() if len(different) == 1 else MIXED


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are defined; None without any."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
