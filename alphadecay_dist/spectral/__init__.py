"""Numbers alone: matrices to eigenvalues, eigenvalues to tail exponents. Knows no rank and no model."""

from alphadecay_dist.spectral.analysis import MIN_EIGENVALUES, STATUSES, Analysis, analyze
from alphadecay_dist.spectral.batch import analyze_each
from alphadecay_dist.spectral.esd import ESD
from alphadecay_dist.spectral.powerlaw import FITS, Fit, fix_finger, goodness_of_fit, hill

__all__ = [
    "ESD",
    "FITS",
    "MIN_EIGENVALUES",
    "STATUSES",
    "Analysis",
    "Fit",
    "analyze",
    "analyze_each",
    "fix_finger",
    "goodness_of_fit",
    "hill",
]
