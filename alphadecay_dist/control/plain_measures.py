"""Measures that look at no weight: none at all, and the learning rate."""

from __future__ import annotations

import torch
from torch import Tensor

from alphadecay_dist.control.measure import Measure, Measured
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.params.groups import names_in, rate_of
from alphadecay_dist.sharding.planning import parts_of
from alphadecay_dist.spectral.report import OK


class PlainMeasure(Measure):
    """Gives every matrix a number without looking at it; this one gives none.

    Args:
        measured: what is measured.
    """

    def __init__(self, measured: Measured) -> None:
        self._host = measured.host
        self._parts = {weight.name: parts_of(weight) for weight in measured.weights}

    def received_by_rank(self) -> tuple[int, ...]:
        """Nothing moves."""
        group = self._host.group
        return (0,) * (group.size() if group else 1)

    def measure(self) -> dict[str, Measurement]:
        """See :class:`Measure`."""
        nothing = Measurement(None, None, OK, 0)
        return {part: nothing for parts in self._parts.values() for part in parts}


class LearningRateShare(PlainMeasure):
    """The learning rate of each matrix now, over the peak: the rate that its optimizer was made with.

    Args:
        measured: what is measured.
    """

    def __init__(self, measured: Measured) -> None:
        super().__init__(measured)
        self._peaks = {
            name: rate_of(group, _peak_of(optimizer))
            for optimizer in self._host.optimizers
            for group in optimizer.param_groups
            for name in names_in(group)
        }

    def measure(self) -> dict[str, Measurement]:
        """See :class:`Measure`."""
        rates = {name: float(group["lr"]) for group in self._host.param_groups() for name in names_in(group)}
        return {
            part: Measurement(None, rates[name] / self._peaks[name] if self._peaks[name] > 0 else 0.0, OK, 0)
            for name, parts in self._parts.items()
            for part in parts
        }


def _peak_of(optimizer: torch.optim.Optimizer) -> float:
    """The rate that the optimizer was made with."""
    peak = optimizer.defaults["lr"]
    if isinstance(peak, Tensor):  # the groups' own, which schedules change in place
        peak = optimizer.param_groups[0].get("initial_lr", peak)
    return float(peak)
