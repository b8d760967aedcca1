"""Numbers alone: metric values to weight decays."""

from alphadecay_dist.decay.assign import Assignment, linear

__all__ = ["Assignment", "linear"]
