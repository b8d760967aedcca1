"""All measures by name: what a row of the table of policies may ask for."""

from __future__ import annotations

from collections.abc import Callable

from alphadecay_dist.control.gradients import GradientMoments, GradientNorms, NormRatio
from alphadecay_dist.control.measure import Measure, Measured
from alphadecay_dist.control.plain_measures import LearningRateShare, PlainMeasure
from alphadecay_dist.control.spectra import SpectrumMeasure
from alphadecay_dist.decay.policies import (
    GRADIENT_MOMENTS,
    GRADIENT_NORM,
    LEARNING_RATE,
    NORM_RATIO,
    NOTHING,
    SPECTRUM,
)
from alphadecay_dist.sharding.planning import require_same_choices

MEASURES: dict[str, Callable[[Measured], Measure]] = {
    SPECTRUM: SpectrumMeasure,
    GRADIENT_NORM: GradientNorms,
    GRADIENT_MOMENTS: GradientMoments,
    NORM_RATIO: NormRatio,
    LEARNING_RATE: LearningRateShare,
    NOTHING: PlainMeasure,
}


def measure_for(measured: Measured) -> Measure:
    """The measure of the settings' policy. Collective.

    Raises:
        UserError: the ranks have different settings or models; see the measures.
    """
    settings, group = measured.settings, measured.host.group
    require_same_choices(measured.weights, settings, group=group, dtype=measured.dtype)
    return MEASURES[settings.row.measure](measured)
