"""The measure of spectra: the metric of each matrix, computed by the rank that owns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from alphadecay_dist.control.lagged import LaggedRefresher, PendingRefresh, device_of
from alphadecay_dist.control.measure import LaggedMeasure, Measured
from alphadecay_dist.control.refresh import ENCODED_LENGTH, Measurement, encode
from alphadecay_dist.sharding.collectives import Collectives, drain_on_error
from alphadecay_dist.sharding.planning import plan_exchange
from alphadecay_dist.spectral import FAILED, Analysis, Histogram, analyze_each
from alphadecay_dist.spectral.report import ENCODED, NO_HISTOGRAM


class SpectrumMeasure(LaggedMeasure):
    """The metric of each matrix's spectrum, computed by its owner rank.

    Phases: the shards of each matrix go to its owner (exchange), the owner computes eigenvalues and reads the
    metric, and one all-gather shares a few numbers per matrix.

    Args:
        measured: what is measured.

    Raises:
        UserError: a device that is not there, or a lag where products are not exact.
    """

    def __init__(self, measured: Measured) -> None:
        host, settings = measured.host, measured.settings
        self._settings = settings
        self._estimator = replace(settings.estimator(), keeps_histogram=measured.histograms)
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
            self._lagged = LaggedRefresher(
                self._exchange, self._weights, settings, self._estimator, self._device
            )

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
            found = self._share(pending.running.analyses())
            if self._settings.row.moves is not None:  # nobody reports metrics of weights that have gone on
                found = {part: replace(own, metrics={}) for part, own in found.items()}
            pending.found = found
            pending.running = None
        return pending.found

    def _analyses(self) -> dict[str, Analysis]:
        """Analyses of this rank's parts, but for those that failed."""
        analyses: dict[str, Analysis] = {}
        with drain_on_error(self._exchange.matrices()) as matrices:
            analyses = analyze_each(self._cut(matrices), self._estimator, self._exchange.room)
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
            unit: [n for part in names for n in self._encode(analyses.get(part, lost))]
            for unit, names in self._parts.items()
            if self._owners[unit] == self._ranks.rank
        }
        count = ENCODED_LENGTH + (ENCODED if self._estimator.keeps_histogram else 0)
        shared = self._exchange.share(mine, {unit: count * len(names) for unit, names in self._parts.items()})
        return {
            part: self._decode(shared[unit][count * place : count * (place + 1)], self._owners[unit])
            for unit, names in self._parts.items()
            for place, part in enumerate(names)
        }

    def _encode(self, analysis: Analysis) -> list[float]:
        """The numbers of a part that travel; its histogram's last, where these are kept."""
        numbers = encode(analysis, self._settings)
        if self._estimator.keeps_histogram:
            numbers += analysis.histogram.encode() if analysis.histogram else NO_HISTOGRAM
        return numbers

    def _decode(self, numbers: tuple[float, ...], owner: int) -> Measurement:
        """From these numbers."""
        found, kept = Measurement.decode(numbers[:ENCODED_LENGTH], owner), numbers[ENCODED_LENGTH:]
        return replace(found, histogram=Histogram.decode(kept)) if kept else found
