"""The policies as a table: what is measured, how it is mapped, what that moves, and when.

A new policy is a new row. Where the row needs something that is not there yet, add it first: a map in
``decay/maps.py``, a calendar here, a measure in ``control/measures.py``, a target in ``control/writers.py``.
Trainer, engines and checkpoints know no policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alphadecay_dist.decay import maps
from alphadecay_dist.decay.assign import Assignment
from alphadecay_dist.decay.maps import Moment

if TYPE_CHECKING:
    from alphadecay_dist.decay.settings import Settings

# What is measured.
SPECTRUM = "spectrum"  # the number of each matrix's spectrum that ``metric`` names
GRADIENT_NORM = "gradient_norm"  # the norm of each weight's gradient
GRADIENT_MOMENTS = "gradient_moments"  # mean and standard deviation of |g| over each weight
NORM_RATIO = "norm_ratio"  # the norm of all gradients over that of all weights
LEARNING_RATE = "learning_rate"  # the rate of this update over the peak
NOTHING = "nothing"

STATIC = "static"  # the policy that ``factors`` is of
UNIFORM = "uniform"  # the policy that has nothing to do

# What is moved.
MATRIX_DECAY = "matrix_decay"  # the weight decay of each tuned matrix
EVERY_DECAY = "every_decay"  # the one decay of all param groups, tuned or not
COORDINATE_DECAY = "coordinate_decay"  # the decay of each coordinate of the tuned matrices
MATRIX_RATE = "matrix_rate"  # the learning rate of each tuned matrix, and of embeddings and head


@dataclass(frozen=True)
class Policy:
    """A row of the table.

    Attributes:
        measure: what is measured, a name of ``control.measures.MEASURES``.
        map: from what was measured to an assignment per matrix. Pure, so that all ranks agree.
        moves: what the mapped numbers become, a name of ``control.writers.WRITERS``; None moves nothing.
        due: whether the policy acts before the update that follows so many finished updates.
        overlaps: whether it can be measured in the background of training (``lag``).
        start: what every matrix has before the policy acts, in base decays or base learning rates.
        spread: updates over which a change is spread linearly; 0 makes it at once.
        each_update: it acts at every update: nothing of it is a refresh, and no line is written of it.
        cautious: it decays no coordinate where update and weight disagree in sign.
    """

    measure: str
    map: Callable[[Settings, Moment], dict[str, Assignment]]
    moves: str | None
    due: Callable[[Settings, int], bool]
    overlaps: bool = False
    start: float = 1.0
    spread: int = 0
    each_update: bool = False
    cautious: bool = False


def every_interval(settings: Settings, updates: int) -> bool:
    """Before the first update and every ``interval`` updates, or ``lead`` updates earlier in a preset."""
    if settings.until is not None and updates > settings.until:
        return False
    return updates == 0 or (updates + settings.choices.lead) % settings.interval == 0


def every_update(settings: Settings, updates: int) -> bool:
    """Before every update."""
    return True


def at_start(settings: Settings, updates: int) -> bool:
    """Before the first update alone."""
    return updates == 0


POLICIES: dict[str, Policy] = {
    UNIFORM: Policy(NOTHING, maps.base, EVERY_DECAY, at_start),
    "none": Policy(NOTHING, maps.zero, EVERY_DECAY, at_start, start=0.0),
    "alphadecay": Policy(SPECTRUM, maps.by_shape, MATRIX_DECAY, every_interval, overlaps=True),
    "awd": Policy(NORM_RATIO, maps.smoothed, EVERY_DECAY, every_update, each_update=True),
    "adadecay": Policy(GRADIENT_NORM, maps.within_layer, MATRIX_DECAY, every_interval),
    "gradient_norm": Policy(GRADIENT_NORM, maps.gradients_by_shape, MATRIX_DECAY, every_interval),
    "adadecay_original": Policy(
        GRADIENT_MOMENTS, maps.base, COORDINATE_DECAY, every_update, each_update=True
    ),
    STATIC: Policy(NOTHING, maps.by_type, MATRIX_DECAY, at_start),
    "shuffled": Policy(SPECTRUM, maps.dealt_by_seed, MATRIX_DECAY, every_interval, overlaps=True),
    "uniform_matched": Policy(SPECTRUM, maps.mean_of_shape, MATRIX_DECAY, every_interval, overlaps=True),
    "adamc": Policy(LEARNING_RATE, maps.proportional, MATRIX_DECAY, every_update, each_update=True),
    "cautious": Policy(NOTHING, maps.base, EVERY_DECAY, at_start, cautious=True),
    "llr": Policy(SPECTRUM, maps.rates_by_shape, MATRIX_RATE, every_interval, overlaps=True, spread=50),
    "monitor": Policy(SPECTRUM, maps.untouched, None, every_interval, overlaps=True),
}
