"""Only numbers: matrices to eigenvalues, eigenvalues to tail exponents. Knows no rank and no model."""

from alphadecay_dist.spectral.analysis import (
    FAILED,
    METRICS,
    MIN_EIGENVALUES,
    PUBLISHED,
    STATUSES,
    Analysis,
    Estimator,
    analyze,
    analyze_stack,
)
from alphadecay_dist.spectral.batch import Workers, analyze_each
from alphadecay_dist.spectral.esd import ESD, EXACT, matmul_precisions
from alphadecay_dist.spectral.farms import Windows
from alphadecay_dist.spectral.powerlaw import (
    FITS,
    Fit,
    fix_finger,
    fix_finger_released,
    goodness_of_fit,
    hill,
)
from alphadecay_dist.spectral.rates import Rates, measured_rates

__all__ = [
    "ESD",
    "EXACT",
    "FAILED",
    "FITS",
    "METRICS",
    "MIN_EIGENVALUES",
    "PUBLISHED",
    "STATUSES",
    "Analysis",
    "Estimator",
    "Fit",
    "Rates",
    "Windows",
    "Workers",
    "analyze",
    "analyze_each",
    "analyze_stack",
    "fix_finger",
    "fix_finger_released",
    "goodness_of_fit",
    "hill",
    "matmul_precisions",
    "measured_rates",
]
