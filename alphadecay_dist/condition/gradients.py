"""The spectra of gradients: their shards go to owner ranks as those of weights do, and numbers come back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.errors import warn
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives, drain_on_error
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.planning import plan_exchange
from alphadecay_dist.spectral.batch import measure_each
from alphadecay_dist.spectral.condition import GradientSpectrum, gradient_spectrum
from alphadecay_dist.spectral.report import FAILED, NON_FINITE, OK, ZERO

STATUSES = (OK, ZERO, NON_FINITE, FAILED)
FIXED = 3  # numbers of a part that travel, besides those of its blocks


class GradientSpectra:
    """The spectrum of each weight's gradient, computed by its owner rank.

    Args:
        host: the engine that holds the gradients.
        weights: whose gradients are looked at.
        blocks: by part, into how many blocks along which axis it is divided; others are not.
        settings: what the exchange may hold in memory.
    """

    def __init__(
        self,
        host: Host,
        weights: Sequence[Weight],
        blocks: Mapping[str, tuple[int, int]],
        settings: Settings,
    ) -> None:
        self._host, self._weights, self._settings = host, weights, settings
        self._blocks = blocks
        self._ranks = Collectives(host.group)
        self._by_unit = {unit: weight for weight in weights for unit in weight.units()}
        self._planned: Exchange | None = None

    def measure(self) -> dict[str, GradientSpectrum]:
        """The spectra by part, before the update's step, with the loss scale undone. Collective."""
        exchange = self._exchange()
        found: dict[str, GradientSpectrum] = {}
        with drain_on_error(exchange.matrices()) as matrices:
            found = measure_each(self._cut(matrices), self._spectrum, exchange.room)
        return self._share(exchange, found)

    def _cut(self, matrices: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Gradients, those of fused weights cut into their parts."""
        for unit, tensor in matrices:
            yield from self._by_unit[unit].cut_up(unit, tensor)
            del tensor  # not while the next one is gathered

    def _exchange(self) -> Exchange:
        """Of the gradients as they are now, by the schedule that was planned for the first ones."""
        sources = self._host.gradient_sources(self._weights)
        if self._planned is None:
            self._planned = plan_exchange(
                self._weights,
                lambda: sources,
                self._settings,
                group=self._host.group,
                dtype=torch.float32,  # engines keep gradients in several types, all of them within this
                budget=self._settings.memory_budget,
            )
            return self._planned
        plan = self._planned
        return Exchange(sources, plan.schedule, plan.dtype, plan.device, self._host.group)

    def _spectrum(self, part: str, gradient: Tensor) -> GradientSpectrum:
        count, axis = self._blocks.get(part, (0, 0))
        try:
            return gradient_spectrum(gradient, count, axis)
        except Exception as error:  # any error: the other ranks wait for this rank's other results
            warn(f"the spectrum of {part}'s gradient failed: {str(error) or type(error).__name__}")
            return self._failed(part)

    def _failed(self, part: str) -> GradientSpectrum:
        return GradientSpectrum(blocks=(None,) * self._blocks.get(part, (0, 0))[0], status=FAILED)

    def _share(self, exchange: Exchange, mine: Mapping[str, GradientSpectrum]) -> dict[str, GradientSpectrum]:
        """What all owners found; what an owner has not analysed has failed there."""
        parts = {unit: weight.parts(unit) for unit, weight in self._by_unit.items()}
        widths = {part: FIXED + self._blocks.get(part, (0, 0))[0] for own in parts.values() for part in own}
        owners = exchange.schedule.plan.owners
        values = {
            unit: [n for part in own for n in _encode(mine.get(part) or self._failed(part))]
            for unit, own in parts.items()
            if owners[unit] == self._ranks.rank
        }
        shared = exchange.share(
            values, {unit: sum(widths[part] for part in own) for unit, own in parts.items()}
        )
        scale = self._host.gradient_scale(0.0)  # of gradients so small that none are clipped
        found = {}
        for unit, own in parts.items():
            numbers = list(shared[unit])
            for part in own:
                found[part] = _decode(numbers[: widths[part]], scale)
                del numbers[: widths[part]]
        return found


def _encode(spectrum: GradientSpectrum) -> list[float]:
    """As it travels: NaN where undefined."""
    numbers = [spectrum.nuclear_rank, spectrum.norm, *spectrum.blocks]
    return [float(STATUSES.index(spectrum.status)), *(math.nan if n is None else n for n in numbers)]


def _decode(numbers: Sequence[float], scale: float) -> GradientSpectrum:
    status, rank, norm, *blocks = (None if math.isnan(n) else n for n in numbers)
    assert status is not None
    norm = None if norm is None else norm * scale
    return GradientSpectrum(rank, norm, tuple(blocks), STATUSES[int(status)])
