"""What a controller knows of each tuned module: its parts, and their alphas, decays and statuses now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alphadecay_dist.control.refresh import (
    NOT_REFRESHED,
    Measurement,
    ModuleRefresh,
    TunedModule,
    common,
    mean,
    report,
    status_of,
)
from alphadecay_dist.decay import Assignment, weight_decay_of
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.planning import parts_of


class ModuleTable:
    """Alphas, decays and statuses by part, and what modules make of their parts'.

    Args:
        weights: the tuned ones.
        weight_decay: the base decay, which every part begins with.

    Attributes:
        sizes: weights in each part.
        alphas: None where undefined.
        decays: as they were assigned last.
        statuses: of the last refresh.
    """

    def __init__(self, weights: Sequence[Weight], weight_decay: float) -> None:
        self._shapes = {weight.name: weight.shape for weight in weights}
        self._parts = {weight.name: parts_of(weight) for weight in weights}
        self.sizes = {
            part: math.prod(self._shapes[name]) // len(own)
            for name, own in self._parts.items()
            for part in own
        }
        self.alphas: dict[str, float | None] = dict.fromkeys(self.sizes)
        self.decays = dict.fromkeys(self.sizes, weight_decay)
        self.statuses = dict.fromkeys(self.sizes, NOT_REFRESHED)

    def __str__(self) -> str:
        """How much is tuned."""
        weights = sum(map(math.prod, self._shapes.values()))
        return f"{len(self._shapes)} modules, {len(self.sizes)} matrices, {weights:,} weights"

    def refreshed(self, found: Mapping[str, Measurement], assigned: Mapping[str, Assignment]) -> None:
        """Take up what a refresh found and assigned, by part."""
        self.alphas = {part: own.alpha for part, own in found.items()}
        self.decays = {part: assignment.weight_decay for part, assignment in assigned.items()}
        self.statuses = {part: status_of(own, assigned[part]) for part, own in found.items()}

    def loaded(
        self, alphas: Mapping[str, float | None], decays: Mapping[str, float], statuses: Mapping[str, str]
    ) -> None:
        """Take up those of a state of the same modules, in the order that stands here."""
        self.alphas = {part: alphas[part] for part in self.sizes}
        self.decays = {part: decays[part] for part in self.sizes}
        self.statuses = {part: statuses[part] for part in self.sizes}

    def module_decays(self) -> dict[str, float]:
        """The decay of each module: the mean of its parts'."""
        return {
            name: weight_decay_of([self.decays[part] for part in parts])
            for name, parts in self._parts.items()
        }

    def modules(self) -> dict[str, TunedModule]:
        """Every module as it is now."""
        return {
            name: TunedModule(
                name,
                self._shapes[name],
                mean(self.alphas[part] for part in self._parts[name]),
                weight_decay,
                common(self.statuses[part] for part in self._parts[name]),
            )
            for name, weight_decay in self.module_decays().items()
        }

    def reports(
        self, found: Mapping[str, Measurement], assigned: Mapping[str, Assignment], metric: str
    ) -> dict[str, ModuleRefresh]:
        """What is said of each module after a refresh was taken up."""
        return {
            name: report(self._parts[name], found, assigned, metric, weight_decay)
            for name, weight_decay in self.module_decays().items()
        }
