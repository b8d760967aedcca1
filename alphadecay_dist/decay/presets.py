"""Presets: choices that go together and are no settings, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

REFERENCE, REFERENCE_VIT, PAPER = "reference", "reference_vit", "paper"
EIGENVALUES = ("spectral_norm", "frobenius_norm")  # the published metrics are lambda_max and sum(lambda)


@dataclass(frozen=True)
class Preset:
    """What code under a preset does; the defaults are this package's own.

    Attributes:
        tunes_ends: whether the first and the last nn.Linear of a model are tuned.
        cuts_fused: whether a fused weight is analysed part by part.
        lead: updates by which a refresh comes before each multiple of ``interval``.
        maps_first_gradients: whether the first refresh maps the norms of the first update's gradients, and
            not equal ones.
        squared: metrics that are mapped as their squares.
        fits: estimators of alpha that stand for others, by the name that a user gives.
        bounded: maps whose decays stay within ``min_ratio`` and ``max_ratio``; None is all.
        refused: metrics that it cannot repeat, and why.
        equal_gets_most: whether the linear map gives equal values ``max_ratio``, and not the base decay.
        coupled: whether its decay is meant to be added to the gradient (L2) of an adaptive optimizer.
    """

    tunes_ends: bool = True
    cuts_fused: bool = True
    lead: int = 0
    maps_first_gradients: bool = False
    squared: tuple[str, ...] = ()
    fits: Mapping[str, str] = field(default_factory=dict)
    bounded: tuple[str, ...] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    equal_gets_most: bool = False
    coupled: bool = False


PUBLISHED = Preset()
RELEASED = Preset(
    tunes_ends=False,
    cuts_fused=False,
    lead=1,
    squared=EIGENVALUES,
    fits={"fix_finger": "fix_finger_released"},
    bounded=("linear",),
    refused={"matrix_entropy": "the released code's entropy (6e-5 added to every share)"},
    equal_gets_most=True,
    coupled=True,
)
PRESETS: dict[str, Preset] = {
    REFERENCE: RELEASED,  # the released code for language models
    # The one for images refreshes before training, and again in each epoch's first update: in the very first
    # one too, from the same weights, but with its gradients, and before anything was done with the former.
    REFERENCE_VIT: replace(RELEASED, lead=0, maps_first_gradients=True),
    PAPER: Preset(squared=EIGENVALUES, bounded=("linear",), coupled=True),  # what the paper's text says
}
