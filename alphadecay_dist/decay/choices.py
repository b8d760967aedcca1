"""What a setting of weight decay may be, where it is one of several words."""

from __future__ import annotations

from collections.abc import Collection

from alphadecay_dist.decay.assign import SHAPES
from alphadecay_dist.decay.policies import POLICIES
from alphadecay_dist.decay.presets import PRESETS
from alphadecay_dist.spectral import FIT_NAMES, METRICS

NORMALIZE = ("none", "mean")
DEVICES = ("auto", "cuda", "cpu")
GROUPS, PREMULTIPLY, AUTO = "groups", "premultiply", "auto"
APPLY = (GROUPS, PREMULTIPLY, AUTO)
RELEASED_FITS = {fit for preset in PRESETS.values() for fit in preset.fits.values()}
CHOOSABLE_FITS = tuple(fit for fit in FIT_NAMES if fit not in RELEASED_FITS)
NEVER_BELOW_ONE = ("alpha", "stable_rank", "nuclear_to_frobenius")  # what sqrt and log2 can map
MEASURING = ("metric", "fit", "xmin_pos", "farms", "heads", "preset")  # decides the numbers that are mapped
DECIDING = (
    "policy",
    "weight_decay",
    "interval",
    "min_ratio",
    "max_ratio",
    "assign",
    "normalize",
    *MEASURING,
    "lag",
    "cautious",
    "factor",
    "factors",
    "seed",
    "until",
)  # what decides the decays
CHOICES: dict[str, Collection[str]] = {
    "policy": POLICIES,
    "assign": SHAPES,
    "normalize": NORMALIZE,
    "metric": METRICS,
    "fit": CHOOSABLE_FITS,
    "preset": PRESETS,
    "device": DEVICES,
    "apply": APPLY,
}
