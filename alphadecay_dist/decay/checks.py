"""Settings of weight decay that cannot be, each alone and together."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

from alphadecay_dist.decay.choices import AUTO, CHOICES, GROUPS, NEVER_BELOW_ONE, PREMULTIPLY
from alphadecay_dist.decay.maps import parse_factors
from alphadecay_dist.decay.policies import NOTHING, SPECTRUM
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.spectral import MIN_EIGENVALUES

if TYPE_CHECKING:
    from alphadecay_dist.decay.settings import Settings


def check(settings: Settings) -> None:
    """Refuse what cannot be.

    Raises:
        UserError: a setting out of its range, or choices that exclude each other.
    """
    for name, known in CHOICES.items():
        found = getattr(settings, name)
        if not ((found is None and name == "preset") or (isinstance(found, str) and found in known)):
            raise UserError(f"{name}: found {shown(found)}, expected one of {', '.join(known)}")
    _check_numbers(settings)
    _check_choices(settings)


def _check_numbers(settings: Settings) -> None:
    if not isinstance(settings.interval, int) or settings.interval < 1:
        raise UserError(f"interval: found {shown(settings.interval)}, expected 1 or more updates")
    if not isinstance(settings.lag, int) or not 0 <= settings.lag < settings.interval:
        raise UserError(
            f"lag: found {shown(settings.lag)} with interval {settings.interval}, expected 0 <= lag < "
            "interval; a refresh is written before the next one begins"
        )
    if not (math.isfinite(settings.weight_decay) and settings.weight_decay >= 0):
        raise UserError(f"weight_decay: found {settings.weight_decay}, expected a number >= 0")
    if not 0 <= settings.min_ratio <= settings.max_ratio < math.inf:
        raise UserError(
            f"min_ratio: found {settings.min_ratio} with max_ratio {settings.max_ratio}, expected "
            "0 <= min_ratio <= max_ratio"
        )
    if not math.isfinite(settings.weight_decay * settings.max_ratio):
        raise UserError(
            f"max_ratio: found {settings.max_ratio}, expected one whose product with weight_decay "
            f"{settings.weight_decay} is a number"
        )
    budget = settings.memory_budget
    if budget is not None and (not isinstance(budget, int) or budget < 1):
        raise UserError(
            f"memory_budget: found {shown(budget)}, expected a whole number of bytes above 0, or None"
        )

    if not (math.isfinite(settings.factor) and settings.factor >= 0):
        raise UserError(f"factor: found {settings.factor}, expected a number >= 0")
    if not isinstance(settings.seed, int) or settings.seed < 0:
        raise UserError(f"seed: found {shown(settings.seed)}, expected a whole number >= 0")
    if settings.until is not None and not (
        isinstance(settings.until, Real) and 0 <= settings.until < math.inf
    ):
        raise UserError(f"until: found {shown(settings.until)}, expected updates, or None")
    if not isinstance(settings.cautious, bool):
        raise UserError(f"cautious: found {shown(settings.cautious)}, expected true or false")
    if settings.factors is not None and not isinstance(settings.factors, str):
        raise UserError(
            f"factors: found {shown(settings.factors)}, expected a text such as 'q_proj=0.7,mlp=2', or None"
        )
    if settings.factors is not None:
        parse_factors(settings.factors)


def _check_choices(settings: Settings) -> None:
    why = settings.choices.refused.get(settings.metric)
    if why is not None:
        raise UserError(
            f"metric: found {settings.metric!r} with preset {settings.preset!r}, which does not repeat "
            f"{why}; use another metric, or no preset"
        )
    if settings.assign in ("sqrt", "log2") and settings.metric not in NEVER_BELOW_ONE:
        raise UserError(
            f"metric: found {settings.metric!r} with assign {settings.assign!r}, whose map needs one never "
            f"below 1: {', '.join(NEVER_BELOW_ONE)}; or use assign linear or sigmoid"
        )
    _check_heads(settings)
    if settings.lag and settings.row.measure != NOTHING and not settings.row.overlaps:
        raise UserError(
            f"lag: found {settings.lag} with policy {settings.policy!r}, expected 0: what it measures cannot "
            "be computed in the background"
        )
    if settings.cautious and settings.row.moves is None:
        raise UserError(
            f"cautious: found true with policy {settings.policy!r}, which changes no decay; leave it out"
        )
    if settings.needs_groups and settings.apply == PREMULTIPLY:
        raise UserError(
            f"apply: found {PREMULTIPLY!r} with {settings.what_needs_groups}, which a product before the "
            f"step cannot do; use apply {GROUPS!r} or {AUTO!r}"
        )
    try:
        few = settings.estimator().windows
    except ValueError as error:
        raise UserError(str(error)) from None
    if few is not None and few.eigenvalues < MIN_EIGENVALUES:
        raise UserError(
            f"farms: found windows with {few.eigenvalues} eigenvalues, expected {MIN_EIGENVALUES} or "
            "more; use larger windows or a finer grid"
        )


def _check_heads(settings: Settings) -> None:
    if not isinstance(settings.heads, bool):
        raise UserError(f"heads: found {shown(settings.heads)}, expected true or false")
    if settings.heads and settings.row.measure != SPECTRUM:
        raise UserError(
            f"heads: found true with policy {settings.policy!r}, which reads no spectrum; set heads to false"
        )
    if settings.heads and not settings.choices.cuts_fused:
        raise UserError(
            f"heads: found true with preset {settings.preset!r}, which cuts no weight; set heads to false"
        )
