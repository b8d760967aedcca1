"""The policies as a table: what is measured, how it is mapped, what that moves, and when.

A new policy is a new row. Where the row needs something that is not there yet, add it first: a map or a
calendar here, a measure in ``control/measures.py``, a target in ``control/writers.py``. Trainer, engines and
checkpoints know no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alphadecay_dist.decay.assign import Assignment, assign, normalize_mean

if TYPE_CHECKING:
    from alphadecay_dist.decay.settings import Settings

Values = Mapping[str, float | None]  # a measured number per matrix; None where it is undefined

SPECTRUM = "spectrum"  # a measure: the number of each matrix's spectrum that ``metric`` names
MATRIX_DECAY = "matrix_decay"  # a target: the weight decay of each tuned matrix


@dataclass(frozen=True)
class Policy:
    """A row of the table.

    Attributes:
        measure: what is measured, a name of ``control.measures.MEASURES``; None where nothing is.
        map: from the measured numbers to an assignment per matrix. Pure, so that all ranks agree.
        moves: what the mapped numbers become, a name of ``control.writers.WRITERS``; None moves nothing.
        due: whether the policy acts before the update that follows so many finished updates.
        overlaps: whether it can be measured in the background of training (``lag``).
    """

    measure: str | None
    map: Callable[[Settings, Values, Mapping[str, float], Mapping[str, int]], dict[str, Assignment]]
    moves: str | None
    due: Callable[[Settings, int], bool]
    overlaps: bool = False


def by_shape(
    settings: Settings, values: Values, last: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, Assignment]:
    """The map that ``settings.assign`` names, normalised as ``settings.normalize`` says.

    Args:
        settings: the rule.
        values: by matrix; None where undefined.
        last: the decay that each matrix has now, kept where its value is undefined.
        sizes: number of weights in each.
    """
    assigned = assign(values, settings.bounds(), shape=settings.assign, last=last)
    if settings.normalize == "mean":
        return normalize_mean(assigned, settings.weight_decay, sizes)
    return assigned


def unmapped(
    settings: Settings, values: Values, last: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, Assignment]:
    """No assignment at all."""
    return {}


def every_interval(settings: Settings, updates: int) -> bool:
    """Before the first update and every ``interval`` updates, or ``lead`` updates earlier in a preset."""
    return updates == 0 or (updates + settings.choices.lead) % settings.interval == 0


def never(settings: Settings, updates: int) -> bool:
    """At no update."""
    return False


POLICIES: dict[str, Policy] = {
    "alphadecay": Policy(SPECTRUM, by_shape, MATRIX_DECAY, every_interval, overlaps=True),
    "uniform": Policy(None, unmapped, None, never),
}
