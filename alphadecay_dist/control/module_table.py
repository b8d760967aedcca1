"""What a controller knows of each tuned module: its parts, and their alphas, numbers and statuses now."""

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
    moved,
    report,
    status_of,
)
from alphadecay_dist.control.state import DecayState
from alphadecay_dist.decay import Assignment, weight_decay_of
from alphadecay_dist.decay.policies import MATRIX_RATE
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.params.groups import UNTUNED_MATRICES
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.planning import parts_of


class ModuleTable:
    """Alphas, decays and statuses by part, and what modules make of their parts'.

    Args:
        weights: the tuned ones.
        settings: of the policy, which says what every part begins with.

    Attributes:
        sizes: weights in each part.
        weight_of: the module of each part.
        alphas: None where undefined.
        numbers: what was assigned last: decays, or learning rates in base learning rates.
        before: what was assigned before that, or was reached of it.
        largest_before: the same of embeddings and head, which have the largest of all numbers.
        statuses: of the last refresh.
    """

    def __init__(self, weights: Sequence[Weight], settings: Settings) -> None:
        self._settings = settings
        self._shapes = {weight.name: weight.shape for weight in weights}
        self._parts = {weight.name: parts_of(weight) for weight in weights}
        self.sizes = {
            part: math.prod(self._shapes[name]) // len(own)
            for name, own in self._parts.items()
            for part in own
        }
        self.weight_of = {part: name for name, own in self._parts.items() for part in own}
        self.alphas: dict[str, float | None] = dict.fromkeys(self.sizes)
        self.numbers = dict.fromkeys(self.sizes, settings.start)
        self.before = dict(self.numbers)
        self.largest_before = settings.start
        self.statuses = dict.fromkeys(self.sizes, NOT_REFRESHED)

    def __str__(self) -> str:
        """How much is tuned."""
        weights = sum(map(math.prod, self._shapes.values()))
        return f"{len(self._shapes)} modules, {len(self.sizes)} matrices, {weights:,} weights"

    def refreshed(
        self, found: Mapping[str, Measurement], assigned: Mapping[str, Assignment], share: float = 1.0
    ) -> None:
        """Take up what a refresh found and assigned, by part; ``share`` as in :meth:`module_numbers`."""
        self.alphas = {part: own.alpha for part, own in found.items()}
        self.before, self.largest_before = self._reached(share), self._largest(share)
        self.numbers = {part: assignment.weight_decay for part, assignment in assigned.items()}
        self.statuses = {part: status_of(own, assigned[part]) for part, own in found.items()}

    def loaded(self, state: DecayState) -> None:
        """Take up a state of the same modules, in the order that stands here.

        What another kind of policy had assigned has no meaning here.
        """
        same = state.moves == self._settings.row.moves
        start = dict.fromkeys(self.sizes, self._settings.start)
        numbers = state.decays if same else start
        self.alphas = {part: state.alphas[part] for part in self.sizes}
        self.numbers = {part: numbers[part] for part in self.sizes}
        self.before = {part: (state.before or numbers)[part] if same else start[part] for part in self.sizes}
        kept = state.largest_before if same else None
        self.largest_before = max(self.before.values()) if kept is None else kept
        self.statuses = {part: state.statuses[part] for part in self.sizes}

    def module_numbers(self, share: float = 1.0) -> dict[str, float]:
        """What each module has: the mean of its parts'.

        Args:
            share: how far it has come, from 0 to 1, from what was assigned before to what was assigned last.
        """
        reached = self._reached(share)
        return {
            name: weight_decay_of([reached[part] for part in parts]) for name, parts in self._parts.items()
        }

    def written(self, share: float = 1.0) -> dict[str, float]:
        """What is written: each module's number, and of rates that of embeddings and head."""
        rates = self._settings.row.moves == MATRIX_RATE
        return self.module_numbers(share) | ({UNTUNED_MATRICES: self._largest(share)} if rates else {})

    def _largest(self, share: float) -> float:
        """What embeddings and head have: on its own way to the largest number of all parts."""
        most = max(self.numbers.values())
        return most if share >= 1.0 else self.largest_before + share * (most - self.largest_before)

    def _reached(self, share: float) -> dict[str, float]:
        if share >= 1.0:
            return self.numbers
        return {part: old + share * (self.numbers[part] - old) for part, old in self.before.items()}

    def mean(self) -> float:
        """The mean over all weights of what was assigned last."""
        total = math.fsum(size * self.numbers[part] for part, size in self.sizes.items())
        return total / sum(self.sizes.values())

    def modules(self) -> dict[str, TunedModule]:
        """Every module as it is now."""
        return {
            name: TunedModule(
                name,
                self._shapes[name],
                mean(self.alphas[part] for part in self._parts[name]),
                moved(self._settings, number)[0],
                common(self.statuses[part] for part in self._parts[name]),
                moved(self._settings, number)[1],
            )
            for name, number in self.module_numbers().items()
        }

    def reports(
        self, found: Mapping[str, Measurement], assigned: Mapping[str, Assignment]
    ) -> dict[str, ModuleRefresh]:
        """What is said of each module after a refresh was taken up."""
        return {
            name: report(self._parts[name], found, assigned, self._settings, number)
            for name, number in self.module_numbers().items()
        }
