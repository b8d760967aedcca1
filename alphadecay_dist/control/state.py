"""The controller's state as a JSON text: written, and read with every value checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alphadecay_dist.control.lagged import PendingRefresh
from alphadecay_dist.control.refresh import ASSIGNED, NOT_REFRESHED, UNKNOWN, Measurement
from alphadecay_dist.decay.policies import POLICIES
from alphadecay_dist.json_fields import count, counted, finite, get, items
from alphadecay_dist.spectral.report import BINS, Histogram


@dataclass(frozen=True)
class DecayState:
    """What a resume needs, by module name.

    Attributes:
        step: updates counted.
        refreshed_at: updates before the last refresh; None before the first.
        settings: of the rule, as plain data.
        pending: a refresh that is to be written, whose findings are shared.
        alphas: None where undefined.
        decays: what was assigned last; learning rates in base learning rates where the policy moves these.
        statuses: of the last refresh.
        before: what was assigned before that, where a change is spread over updates.
        written_at: updates before the last assignment; None before the first.
        largest_before: as ``before``, of embeddings and head.
    """

    step: int
    refreshed_at: int | None
    settings: Mapping[str, object]
    pending: PendingRefresh | None
    alphas: Mapping[str, float | None]
    decays: Mapping[str, float]
    statuses: Mapping[str, str]
    before: Mapping[str, float] | None = None
    written_at: int | None = None
    largest_before: float | None = None

    @property
    def policy(self) -> str:
        """The policy that the state is of; states of before there were others name none."""
        return str(self.settings.get("policy", "alphadecay"))

    @property
    def moves(self) -> str | None:
        """What that policy moves; None also for one that is not known here."""
        row = POLICIES.get(self.policy)
        return None if row is None else row.moves

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "step": self.step,
            "refreshed_at": self.refreshed_at,
            "written_at": self.written_at,
            "settings": dict(self.settings),
            "before": self.before and dict(self.before),
            "largest_before": self.largest_before,
            "pending": self.pending and self.pending.as_dict(),
            "modules": {
                name: {"alpha": alpha, "weight_decay": self.decays[name], "status": self.statuses[name]}
                for name, alpha in self.alphas.items()
            },
        }

    @classmethod
    def of(cls, text: str) -> DecayState:
        """From a JSON text.

        Raises:
            ValueError: what is wrong with it.
        """
        try:
            data = json.loads(text)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"is no JSON: {error}") from None
        modules = dict(items(data, "modules", dict))
        pending = data.get("pending")  # states of before there was a lag have none
        if pending is not None and get(pending, "found", dict).keys() != modules.keys():
            raise ValueError("has a pending refresh of other modules")
        return cls(
            step=count(data, "step"),
            refreshed_at=_optional(data.get("refreshed_at"), "refreshed_at", counted),
            settings=get(data, "settings", dict),
            before=_before(data.get("before"), modules),
            largest_before=_optional(data.get("largest_before"), "largest_before", finite),
            written_at=_optional(data.get("written_at", data.get("refreshed_at")), "written_at", counted),
            pending=None if pending is None else _pending(pending),
            alphas={
                name: _optional(module.get("alpha"), f"alpha of {name}", finite)
                for name, module in modules.items()
            },
            decays={name: _decay(module, name) for name, module in modules.items()},
            statuses={name: _status(module, data.get("refreshed_at")) for name, module in modules.items()},
        )


def _optional(value: Any, key: str, check: Any) -> Any:
    return None if value is None else check(value, key)


def _before(numbers: Any, modules: Mapping[str, Any]) -> dict[str, float] | None:
    if numbers is None:
        return None
    if not isinstance(numbers, dict) or numbers.keys() != modules.keys():
        raise ValueError("has other modules in 'before' than in 'modules'")
    return {name: finite(number, f"before of {name}") for name, number in numbers.items()}


def _decay(module: Mapping[str, Any], name: str) -> float:
    decay = finite(module.get("weight_decay"), f"weight_decay of {name}")
    if decay < 0:
        raise ValueError(f"has {decay} as weight_decay of {name}, expected 0 or more")
    return decay


def _status(module: Mapping[str, Any], refreshed_at: object) -> str:
    """The status; states of before it was kept tell it by the alpha alone."""
    if "status" in module:
        return get(module, "status", str)
    if module.get("alpha") is not None:
        return ASSIGNED
    return NOT_REFRESHED if refreshed_at is None else UNKNOWN


def _pending(data: Mapping[str, Any]) -> PendingRefresh:
    received = tuple(counted(number, "bytes_received") for number in get(data, "bytes_received", list))
    found = {name: _found(numbers, name) for name, numbers in items(data, "found", list)}
    return PendingRefresh(count(data, "step"), count(data, "write_at"), received, found=found)


def _found(numbers: list[Any], name: str) -> Measurement:
    if len(numbers) not in (4, 5, 6) or not isinstance(numbers[2], str):
        raise ValueError(f"has {len(numbers)} values as what was found of {name}, expected 4 to 6")
    alpha, value, status, owner, *more = numbers
    for own, kind in zip(more, ("metrics", "histogram"), strict=False):
        if not isinstance(own, dict):
            raise ValueError(f"has {own!r} as {kind} of {name}, expected an object")
    metrics = dict(more[0]) if more else {}
    return Measurement(
        _optional(alpha, f"alpha of {name}", finite),
        _optional(value, f"value of {name}", finite),
        status,
        counted(owner, f"owner of {name}"),
        {metric: _optional(number, f"{metric} of {name}", finite) for metric, number in metrics.items()},
        _histogram(more[1], name) if len(more) > 1 else None,
    )


def _histogram(data: Mapping[str, Any], name: str) -> Histogram:
    counts = tuple(counted(number, f"counts of {name}") for number in get(data, "counts", list))
    if len(counts) != BINS:
        raise ValueError(f"has {len(counts)} counts of {name}, expected {BINS}")
    return Histogram(
        count(data, "eigenvalues"),
        finite(data.get("low"), f"low of {name}"),
        finite(data.get("high"), f"high of {name}"),
        _optional(data.get("alpha"), f"alpha of {name}", finite),
        _optional(data.get("xmin"), f"xmin of {name}", finite),
        count(data, "tail"),
        counts,
    )
