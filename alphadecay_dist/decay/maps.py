"""The policies' maps: from what was measured to an assignment per matrix. Pure, so that all ranks agree."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from alphadecay_dist.decay.assign import (
    ASSIGNED,
    KEPT,
    MEASURED,
    Assignment,
    assign,
    layer_scores,
    normalize_mean,
)
from alphadecay_dist.errors import UserError

if TYPE_CHECKING:
    from alphadecay_dist.decay.settings import Settings

NO_GRADIENT = 10.0  # what a gradient norm counts as before there is one, as in the released code
STABILIZER = 1e-8  # added to the standard deviation within a layer, as in the released code
OLD, NEW = 0.1, 0.9  # shares of the last value and of the new one in AWD's smoothing
# Typical alphas of trained models, by the last part of a matrix's name; of all others the last number.
TYPICAL_ALPHA = (
    (1.7, ("q", "k", "*q_proj", "*k_proj", "query", "key", "wq", "wk", "q_lin", "k_lin")),
    (1.95, ("v", "*v_proj", "*o_proj", "out_proj", "value", "wv", "wo", "v_lin", "out_lin", "proj")),
    (2.4, ("*",)),
)


@dataclass(frozen=True)
class Moment:
    """What a map is given.

    Attributes:
        values: what was measured, by matrix; None where it is undefined.
        last: what each matrix has now.
        sizes: number of weights in each.
        first: whether nothing was assigned before.
        weight_of: the weight that a matrix is part of, of a fused weight or a stack; others are their own.
    """

    values: Mapping[str, float | None]
    last: Mapping[str, float]
    sizes: Mapping[str, int]
    first: bool = False
    weight_of: Mapping[str, str] = field(default_factory=dict)


def by_shape(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """The map that ``settings.assign`` names, normalised as ``settings.normalize`` says."""
    assigned = assign(moment.values, settings.bounds(), shape=settings.assign, last=moment.last)
    if settings.normalize == "mean":
        return normalize_mean(assigned, settings.weight_decay, moment.sizes)
    return assigned


def base(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """The base decay everywhere."""
    return dict.fromkeys(moment.values, Assignment(settings.weight_decay, ASSIGNED))


def zero(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """No decay at all."""
    return dict.fromkeys(moment.values, Assignment(0.0, ASSIGNED))


def untouched(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """What is only watched."""
    return {name: Assignment(moment.last[name], MEASURED) for name in moment.values}


def smoothed(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """AWD as released: base decay x factor x norm ratio, smoothed from 0 without a correction.

    The same number for all; where the ratio is undefined (gradients that are not finite) the last one.
    """
    assigned = {}
    for name, ratio in moment.values.items():
        before = 0.0 if moment.first else moment.last[name]
        if ratio is None:
            assigned[name] = Assignment(moment.last[name], KEPT)
        else:
            new = settings.weight_decay * settings.factor * ratio
            assigned[name] = Assignment(OLD * before + NEW * new, ASSIGNED)
    return assigned


def within_layer(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """AdaDecay as released: base decay x 2 / (1 + exp(-4 z)) of the z-score within the module's layer.

    A weight counts once in its layer, of however many parts it is: they share its gradient norm.
    """
    values = _at_first(settings, moment)
    weights = {name: moment.weight_of.get(name, name) for name in values}
    defined = {weights[name]: value for name, value in values.items() if value is not None}
    ratios = {weight: 1 + math.tanh(2 * z) for weight, z in layer_scores(defined, STABILIZER).items()}
    return {
        name: Assignment(settings.weight_decay * ratios[weight], ASSIGNED)
        if weight in ratios
        else Assignment(moment.last[name], KEPT)
        for name, weight in weights.items()
    }


def gradients_by_shape(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """Gradient norms through the same map as alphas (Table 9 of the paper)."""
    values = _at_first(settings, moment)
    return by_shape(settings, Moment(values, moment.last, moment.sizes, moment.first))


def proportional(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """AdamC (arXiv 2506.02285): base decay x learning rate / peak, so that AdamW decays by lr^2 / peak."""
    return {
        name: Assignment(moment.last[name], KEPT)
        if share is None
        else Assignment(settings.weight_decay * share, ASSIGNED)
        for name, share in moment.values.items()
    }


def by_type(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """A constant for each type of module, the same in every layer.

    By default each type gets what the map makes of its typical alpha in trained models; ``factors`` gives
    others, in base decays.

    Raises:
        UserError: a pattern of ``factors`` matches nothing.
    """
    if settings.factors is None:
        typical = {name: _typical_alpha(name) for name in moment.values}
        return by_shape(settings, Moment(typical, moment.last, moment.sizes))
    require_patterns(settings, moment.values)
    factors = parse_factors(settings.factors)
    ratios = {name: next((f for p, f in factors.items() if _is_of(name, p)), 1.0) for name in moment.values}
    return {name: Assignment(settings.weight_decay * ratio, ASSIGNED) for name, ratio in ratios.items()}


def require_patterns(settings: Settings, names: Collection[str]) -> None:
    """Refuse factors that are of no matrix, also before any was measured.

    Raises:
        UserError: a pattern of ``factors`` matches nothing.
    """
    for pattern in parse_factors(settings.factors) if settings.factors is not None else ():
        if not any(_is_of(name, pattern) for name in names):
            raise UserError(
                f"factors: {pattern!r} matches no tuned module; give parts of their names, such as q_proj=0.7"
            )


def dealt_by_seed(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """The decays of :func:`by_shape`, dealt to the matrices: the same dealing at every refresh of a seed."""
    assigned = by_shape(settings, moment)
    names = sorted(name for name, own in assigned.items() if own.case != KEPT)
    dealt = random.Random(settings.seed).sample(names, len(names))
    return assigned | {name: assigned[other] for name, other in zip(names, dealt, strict=True)}


def mean_of_shape(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """The mean of :func:`by_shape` over all tuned weights, for each of them: Uniform of the same total."""
    assigned = by_shape(settings, moment)
    weighted = math.fsum(moment.sizes[name] * own.weight_decay for name, own in assigned.items())
    mean = weighted / sum(moment.sizes[name] for name in assigned)
    return {
        name: Assignment(mean, ASSIGNED if own.case == KEPT else own.case) for name, own in assigned.items()
    }


def rates_by_shape(settings: Settings, moment: Moment) -> dict[str, Assignment]:
    """LLR (arXiv 2605.22297): as :func:`by_shape`, but in base learning rates."""
    assigned = assign(moment.values, settings.bounds(1.0), shape=settings.assign, last=moment.last)
    return normalize_mean(assigned, 1.0, moment.sizes) if settings.normalize == "mean" else assigned


def parse_factors(text: str) -> dict[str, float]:
    """Factors by pattern from a text such as ``q_proj=0.7,mlp=2``.

    Raises:
        UserError: it is not written so, or a factor is no number of 0 or more.
    """
    factors = {}
    for item in text.split(","):
        pattern, _, number = item.partition("=")
        try:
            factors[pattern.strip()] = float(number)
        except ValueError:
            factors[pattern.strip()] = math.nan
        if not pattern.strip() or not 0 <= factors[pattern.strip()] < math.inf:
            raise UserError(
                f"factors: found {item!r}, expected pattern=number each, such as q_proj=0.7,mlp=2"
            )
    return factors


def _at_first(settings: Settings, moment: Moment) -> Mapping[str, float | None]:
    """Gradient norms as they count: all equal at the very first, where the released code has none yet."""
    unknown = moment.first and not settings.choices.maps_first_gradients
    return dict.fromkeys(moment.values, NO_GRADIENT) if unknown else moment.values


def _typical_alpha(name: str) -> float:
    last = name.rsplit(".", 1)[-1]
    return next(alpha for alpha, ends in TYPICAL_ALPHA if any(fnmatchcase(last, end) for end in ends))


def _is_of(name: str, pattern: str) -> bool:
    """Whether a pattern is a part of a dotted name, or a glob over the whole of it."""
    return pattern in name.split(".") or fnmatchcase(name, pattern)
