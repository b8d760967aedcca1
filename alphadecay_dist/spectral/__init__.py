"""Numbers alone: matrices to eigenvalues, eigenvalues to tail exponents. Knows no rank and no model.

What can be chosen and what is found are plain data; torch is loaded with the first name that computes.
"""

from typing import TYPE_CHECKING

from alphadecay_dist.lazy import lazy_names
from alphadecay_dist.spectral.estimator import FIT_NAMES, PUBLISHED, Estimator, Windows
from alphadecay_dist.spectral.report import FAILED, METRICS, MIN_EIGENVALUES, STATUSES, Analysis, Histogram

if TYPE_CHECKING:
    from alphadecay_dist.spectral.analysis import analyze, analyze_stack
    from alphadecay_dist.spectral.batch import Workers, analyze_each
    from alphadecay_dist.spectral.esd import ESD, EXACT, matmul_precisions
    from alphadecay_dist.spectral.powerlaw import (
        FITS,
        Fit,
        fix_finger,
        fix_finger_released,
        goodness_of_fit,
        hill,
    )
    from alphadecay_dist.spectral.rates import Rates, measured_rates
else:
    _COMPUTING = {
        "analysis": ("analyze", "analyze_stack"),
        "batch": ("Workers", "analyze_each"),
        "esd": ("ESD", "EXACT", "matmul_precisions"),
        "powerlaw": ("FITS", "Fit", "fix_finger", "fix_finger_released", "goodness_of_fit", "hill"),
        "rates": ("Rates", "measured_rates"),
    }
    __getattr__ = lazy_names(__name__, {name: home for home, names in _COMPUTING.items() for name in names})

__all__ = [
    "ESD",
    "EXACT",
    "FAILED",
    "FITS",
    "FIT_NAMES",
    "METRICS",
    "MIN_EIGENVALUES",
    "PUBLISHED",
    "STATUSES",
    "Analysis",
    "Estimator",
    "Fit",
    "Histogram",
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
