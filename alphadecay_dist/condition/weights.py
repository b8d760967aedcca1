"""The spectra of the weights themselves: what a policy has just found of them is not measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.measure import Measured
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.control.spectra import SpectrumMeasure
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.params.inventory import Weight


class WeightSpectra:
    """The spectrum of each weight, computed by its owner rank.

    Args:
        host: the engine that holds the weights.
        weights: that are looked at.
        settings: what the exchange may hold in memory, and how alpha is read.
        dtype: the type in which weights are read.
        policy: what may have measured some of them at the same update; None without.
    """

    def __init__(
        self,
        host: Host,
        weights: Sequence[Weight],
        settings: Settings,
        dtype: torch.dtype | None,
        policy: AlphaDecay | None,
    ) -> None:
        self._host, self._weights = host, weights
        self._settings, self._dtype, self._policy = settings, dtype, policy
        self._measures: dict[tuple[str, ...], SpectrumMeasure] = {}  # of some of the weights, by their names
        self._measure_of(weights)

    def measure(self, updates: int) -> dict[str, Measurement]:
        """What there is to say of each part, at the update after so many. Collective."""
        policy = self._policy
        known = policy.spectra_at(updates, self._settings.estimator(), self._dtype) if policy else {}
        unknown = [weight for weight in self._weights if not _is_in(weight, known)]
        return {**known, **(self._measure_of(unknown).measure() if unknown else {})}

    def _measure_of(self, weights: Sequence[Weight]) -> SpectrumMeasure:
        """The measure of these, which is planned once; all ranks ask for the same ones. Collective."""
        names = tuple(weight.name for weight in weights)
        if names not in self._measures:
            measured = Measured(self._host, weights, self._settings, self._dtype)
            self._measures[names] = SpectrumMeasure(measured)
        return self._measures[names]


def _is_in(weight: Weight, found: Mapping[str, Measurement]) -> bool:
    """Whether all of its parts are in what was found."""
    return all(part in found for unit in weight.units() for part in weight.parts(unit))
