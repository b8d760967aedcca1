"""Numbers alone: metric values to weight decays."""

from alphadecay_dist.decay.assign import (
    SHAPES,
    Assignment,
    Bounds,
    assign,
    normalize_mean,
    weight_decay_of,
)

__all__ = ["SHAPES", "Assignment", "Bounds", "assign", "normalize_mean", "weight_decay_of"]
