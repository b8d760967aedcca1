"""What a policy measures: the table ``MEASURES``, and its first entry, the spectrum of each matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphadecay_dist.control.lagged import LaggedRefresher, PendingRefresh, device_of
from alphadecay_dist.control.refresh import Measurement, encode
from alphadecay_dist.decay.policies import SPECTRUM
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives, drain_on_error
from alphadecay_dist.sharding.planning import plan_exchange
from alphadecay_dist.spectral import FAILED, Analysis, analyze_each


@dataclass(frozen=True)
class Measured:
    """What is measured, and how.

    Attributes:
        host: the engine that holds the weights.
        weights: those that the policy takes.
        settings: of the policy.
        dtype: the type that weights travel and are analysed in; None is their own.
    """

    host: Host
    weights: Sequence[Weight]
    settings: Settings
    dtype: torch.dtype | None


class Measure(ABC):
    """Gives a number for each matrix, equal on every rank. All ranks construct it together."""

    @abstractmethod
    def measure(self) -> dict[str, Measurement]:
        """Measure now. Collective.

        Returns:
            A measurement per matrix (the parts of a fused weight count each), in the order of the weights.
        """

    @abstractmethod
    def received_by_rank(self) -> tuple[int, ...]:
        """Bytes of weights that each rank receives from others for one measurement."""


class LaggedMeasure(Measure):
    """One that can also measure in the background, for policies that overlap with training."""

    @abstractmethod
    def begin(self, updates: int) -> PendingRefresh:
        """Begin in the background, after so many finished updates. Collective."""

    @abstractmethod
    def settle(self, pending: PendingRefresh) -> dict[str, Measurement]:
        """What a pending one found: waited for and shared once. Collective, that once."""


class SpectrumMeasure(LaggedMeasure):
    """The metric of each matrix's spectrum, computed by its owner rank.

    Phases: the shards of each matrix go to its owner (exchange), the owner computes eigenvalues and reads the
    metric, and one all-gather shares a few numbers per matrix.

    Args:
        measured: what is measured.

    Raises:
        UserError: ranks with other models or settings, a device that is not there, or a lag where products
            are not exact.
    """

    def __init__(self, measured: Measured) -> None:
        host, settings = measured.host, measured.settings
        self._settings = settings
        self._ranks = Collectives(host.group)
        with self._ranks.raise_on_all_ranks():
            self._device = device_of(settings.device)
        self._weights = {unit: weight for weight in measured.weights for unit in weight.units()}
        self._parts = {unit: weight.parts(unit) for unit, weight in self._weights.items()}
        self._exchange = plan_exchange(
            measured.weights,
            lambda: host.sources(measured.weights, measured.dtype),
            settings,
            group=host.group,
            dtype=measured.dtype,
            budget=settings.memory_budget,
        )
        self._owners = self._exchange.schedule.plan.owners
        with self._ranks.raise_on_all_ranks():
            self._lagged = LaggedRefresher(self._exchange, self._weights, settings, self._device)

    def measure(self) -> dict[str, Measurement]:
        """See :class:`Measure`."""
        return self._share(self._analyses())

    def received_by_rank(self) -> tuple[int, ...]:
        """See :class:`Measure`."""
        return self._exchange.received_by_rank()

    def begin(self, updates: int) -> PendingRefresh:
        """See :class:`LaggedMeasure`."""
        return self._lagged.begin(updates)

    def settle(self, pending: PendingRefresh) -> dict[str, Measurement]:
        """See :class:`LaggedMeasure`."""
        if pending.found is None:
            assert pending.running is not None
            pending.found = self._share(pending.running.analyses())
            pending.running = None
        return pending.found

    def _analyses(self) -> dict[str, Analysis]:
        """Analyses of this rank's parts, but for those that failed."""
        analyses: dict[str, Analysis] = {}
        with drain_on_error(self._exchange.matrices()) as matrices:
            analyses = analyze_each(self._cut(matrices), self._settings.estimator(), self._exchange.room)
        return analyses

    def _cut(self, matrices: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Matrices where they are analysed, fused ones cut into their parts."""
        for unit, tensor in matrices:
            yield from self._weights[unit].cut_up(unit, tensor.to(self._device))
            del tensor  # not while the next one is gathered

    def _share(self, analyses: Mapping[str, Analysis]) -> dict[str, Measurement]:
        """What all owners found, by part; what an owner has not analysed has failed there."""
        lost = Analysis(status=FAILED)
        mine = {
            unit: [n for part in names for n in encode(analyses.get(part, lost), self._settings)]
            for unit, names in self._parts.items()
            if self._owners[unit] == self._ranks.rank
        }
        shared = self._exchange.share(mine, {unit: 3 * len(names) for unit, names in self._parts.items()})
        return {
            part: Measurement.decode(shared[unit][3 * place : 3 * place + 3], self._owners[unit])
            for unit, names in self._parts.items()
            for place, part in enumerate(names)
        }


MEASURES: dict[str, Callable[[Measured], Measure]] = {SPECTRUM: SpectrumMeasure}


def measure_for(measured: Measured) -> Measure:
    """The measure of the settings' policy. Collective.

    Raises:
        UserError: the policy measures nothing.
    """
    settings = measured.settings
    if settings.row.measure is None:
        raise UserError(
            f"policy: found {settings.policy!r}, which moves no decay; leave AlphaDecay out: the decays of "
            "param_groups() stay as they are"
        )
    return MEASURES[settings.row.measure](measured)
