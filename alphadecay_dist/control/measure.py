"""What the controller asks of a measure, and what a measure is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alphadecay_dist.control.lagged import PendingRefresh
from alphadecay_dist.control.refresh import Measurement
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.host import Host
from alphadecay_dist.params.inventory import Weight


@dataclass(frozen=True)
class Measured:
    """What is measured, and how.

    Attributes:
        host: the engine that holds the weights.
        weights: those that the policy takes.
        settings: of the policy.
        dtype: the type that weights travel and are analysed in; None is their own.
        histograms: whether histograms of spectra are wanted too; other measures have none.
    """

    host: Host
    weights: Sequence[Weight]
    settings: Settings
    dtype: torch.dtype | None
    histograms: bool = False


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
