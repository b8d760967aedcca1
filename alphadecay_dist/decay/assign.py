"""Metric values -> weight decays: pure functions, so ranks with equal values get equal decays."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ASSIGNED = "assigned"  # mapped from the module's own value
EQUAL = "all_equal"  # all defined values are equal: the base decay
KEPT = "kept"  # the value is undefined: the last decay
MEASURED = "measured"  # nothing was to be assigned


@dataclass(frozen=True)
class Assignment:
    """A module's decay, and which case gave it (ASSIGNED, EQUAL or KEPT)."""

    weight_decay: float
    case: str


@dataclass(frozen=True)
class Bounds:
    """The base decay, and decays as multiples of it: the smallest, the largest, and that of equal values."""

    weight_decay: float
    min_ratio: float
    max_ratio: float
    equal_ratio: float = 1.0


def assign(
    values: Mapping[str, float | None], bounds: Bounds, *, shape: str, last: Mapping[str, float]
) -> dict[str, Assignment]:
    """Map metric values to decays.

    Args:
        values: alpha, or another metric, by module; None if undefined. Such a module does not count in any
            mean or range.
        bounds: the base decay and the range of decays.
        shape: a name of ``SHAPES``.
        last: the current decay of each module, which it keeps if its value is undefined.

    Returns:
        An assignment for every module, in the order of ``values``. If all defined values are equal, their
        modules get ``bounds.equal_ratio``.
    """
    defined = {name: value for name, value in values.items() if value is not None}
    equal = len(set(defined.values())) < 2
    ratios = dict.fromkeys(defined, bounds.equal_ratio) if equal else SHAPES[shape](defined, bounds)
    case = EQUAL if equal else ASSIGNED
    return {
        name: Assignment(bounds.weight_decay * ratios[name], case)
        if name in ratios
        else Assignment(last[name], KEPT)
        for name in values
    }


def linear(values: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    """Linear map of AlphaDecay (arXiv 2506.14562, section 3): a higher alpha gets a stronger decay.

    [min alpha, max alpha] over all modules is mapped to [min_ratio, max_ratio]. Like all maps here it returns
    ratios, which are multiples of the base decay.
    """
    low, high = min(values.values()), max(values.values())
    width = bounds.max_ratio - bounds.min_ratio
    return {name: bounds.min_ratio + (v - low) / (high - low) * width for name, v in values.items()}


def sqrt(values: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    """Proportional to the square root of alpha, with mean ratio 1 before the bounds are applied."""
    return _proportional({name: math.sqrt(value) for name, value in values.items()}, bounds)


def log2(values: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    """Proportional to the binary logarithm of alpha, with mean ratio 1 before the bounds are applied."""
    return _proportional({name: math.log2(value) for name, value in values.items()}, bounds)


def sigmoid(values: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    """The ratio 2 / (1 + exp(-4 z)), where z is the z-score of alpha within the module's own layer.

    Modules of one layer share the name up to the innermost ``layers.3``, ``blocks.3``, ``layer.3`` or
    ``h.3``; without these, up to the first number. If the alphas of a layer are equal, z is 0.
    """
    # 1 + tanh(2 z) is the same ratio, and never overflows.
    return _bounded({name: 1.0 + math.tanh(2.0 * z) for name, z in layer_scores(values).items()}, bounds)


def layer_scores(values: Mapping[str, float], stabilizer: float = 0.0) -> dict[str, float]:
    """The z-score of each value within its module's layer; 0 where all of a layer are equal.

    Args:
        values: by module.
        stabilizer: added to the standard deviation (of the population).
    """
    layers: dict[str, list[float]] = {}
    for name, value in values.items():
        layers.setdefault(_layer(name), []).append(value)
    centres = {layer: (statistics.fmean(own), statistics.pstdev(own)) for layer, own in layers.items()}
    scores = {}
    for name, value in values.items():
        mean, deviation = centres[_layer(name)]
        scores[name] = (value - mean) / (deviation + stabilizer) if deviation > 0 else 0.0
    return scores


SHAPES: dict[str, Callable[[Mapping[str, float], Bounds], dict[str, float]]] = {
    "linear": linear,
    "sqrt": sqrt,
    "log2": log2,
    "sigmoid": sigmoid,
}


def normalize_mean(
    assigned: Mapping[str, Assignment], weight_decay: float, sizes: Mapping[str, int]
) -> dict[str, Assignment]:
    """Scale the assigned decays so that their mean over all weights is the base decay.

    Without this, AlphaDecay also decays more than Uniform in total. Modules with the case KEPT or EQUAL stay
    as they are and do not count in the mean.

    Args:
        assigned: the result of :func:`assign`.
        weight_decay: the base decay.
        sizes: number of weights by module, the weights of the mean.
    """
    moved = {name: a for name, a in assigned.items() if a.case == ASSIGNED}
    total = math.fsum(sizes[name] * a.weight_decay for name, a in moved.items())
    factor = weight_decay * sum(sizes[name] for name in moved) / total if total > 0 else math.inf
    if not all(math.isfinite(a.weight_decay * factor) for a in moved.values()):
        return dict(assigned)  # decays are zero, or too small to be scaled to the base decay
    return {
        name: Assignment(a.weight_decay * factor, a.case) if name in moved else a
        for name, a in assigned.items()
    }


def weight_decay_of(parts: Sequence[float]) -> float:
    """The decay of a weight: the mean of the decays of its matrices."""
    return parts[0] if len(parts) == 1 else math.fsum(parts) / len(parts)


def _proportional(weights: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    total = math.fsum(weights.values())
    return _bounded({name: weight / total * len(weights) for name, weight in weights.items()}, bounds)


def _bounded(ratios: Mapping[str, float], bounds: Bounds) -> dict[str, float]:
    return {name: min(max(ratio, bounds.min_ratio), bounds.max_ratio) for name, ratio in ratios.items()}


def _layer(name: str) -> str:
    """``model.layers.3`` for ``model.layers.3.mlp.experts.5.up_proj``."""
    found = _NAMED_LAYER.match(name) or _FIRST_NUMBER.match(name)
    return found[0] if found else name


_NAMED_LAYER = re.compile(r"(?:.*\.)?(?:layers?|blocks?|h)\.\d+(?=\.|$)")
_FIRST_NUMBER = re.compile(r"(?:.*?\.)?\d+(?=\.|$)")
