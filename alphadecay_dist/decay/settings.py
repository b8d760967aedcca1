"""The settings of the rule: what is measured, how it is mapped, and when."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real

from alphadecay_dist.decay import SHAPES, Assignment, Bounds, assign, normalize_mean
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.spectral import FIT_NAMES, METRICS, MIN_EIGENVALUES, Analysis, Estimator, Windows

NORMALIZE = ("none", "mean")
REFERENCE = "reference"
PRESETS = (REFERENCE,)
DEVICES = ("auto", "cuda", "cpu")  # where spectra are computed; auto is where the matrices arrive
RELEASED_FIT = "fix_finger_released"  # what fix_finger is under the reference preset, and nothing else
SQUARED = ("spectral_norm", "frobenius_norm")  # the released code has their squares
CHOOSABLE_FITS = tuple(fit for fit in FIT_NAMES if fit != RELEASED_FIT)
MEASURING = ("metric", "fit", "xmin_pos", "farms", "preset")  # what decides the numbers that are mapped
NEVER_BELOW_ONE = ("alpha", "stable_rank", "nuclear_to_frobenius")  # what sqrt and log2 can map


@dataclass(frozen=True)
class Settings:
    """The settings of the rule; see :class:`alphadecay_dist.AlphaDecay`.

    Raises:
        UserError: a setting out of its range.
    """

    weight_decay: float
    interval: int
    min_ratio: float
    max_ratio: float
    assign: str = "linear"
    normalize: str = "none"
    metric: str = "alpha"
    fit: str = "hill"
    xmin_pos: float = 2.0
    farms: Windows | None = None
    preset: str | None = None
    lag: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        choices: dict[str, Iterable[str]] = {
            "assign": SHAPES,
            "normalize": NORMALIZE,
            "metric": METRICS,
            "fit": CHOOSABLE_FITS,
            "preset": PRESETS,
        }
        for name, known in choices.items():
            found = getattr(self, name)
            if found is None and name == "preset":
                continue
            if not isinstance(found, str) or found not in known:
                raise UserError(f"{name}: found {shown(found)}, expected one of {', '.join(known)}")
        if self.preset == REFERENCE and self.metric == "matrix_entropy":
            raise UserError(
                "metric: found 'matrix_entropy' with preset 'reference', which does not repeat the released "
                "code's entropy (6e-5 added to every share); use another metric, or no preset"
            )
        if self.assign in ("sqrt", "log2") and self.metric not in NEVER_BELOW_ONE:
            raise UserError(
                f"metric: found {self.metric!r} with assign {self.assign!r}, whose map needs one never "
                f"below 1: {', '.join(NEVER_BELOW_ONE)}; or use assign linear or sigmoid"
            )
        try:
            few = self.estimator().windows
            if few is not None and few.eigenvalues < MIN_EIGENVALUES:
                raise UserError(
                    f"farms: found windows with {few.eigenvalues} eigenvalues, expected {MIN_EIGENVALUES} or "
                    "more; use larger windows or a finer grid"
                )
        except ValueError as error:
            raise UserError(str(error)) from None

    def _check_numbers(self) -> None:
        for name in ("weight_decay", "min_ratio", "max_ratio", "xmin_pos"):
            found = getattr(self, name)
            if not isinstance(found, Real):
                raise UserError(f"{name}: found {shown(found)}, expected a number")
            if not isinstance(found, int | float):  # numpy's, which JSON does not take
                object.__setattr__(self, name, float(found))
        for name in ("interval", "lag"):
            found = getattr(self, name)
            if isinstance(found, Integral) and not isinstance(found, int):
                object.__setattr__(self, name, int(found))
        if self.farms is not None and not isinstance(self.farms, Windows):
            raise UserError(
                f"farms: found {shown(self.farms)}, expected alphadecay_dist.spectral.Windows or None"
            )
        if not isinstance(self.interval, int) or self.interval < 1:
            raise UserError(f"interval: found {shown(self.interval)}, expected 1 or more updates")
        if not isinstance(self.lag, int) or not 0 <= self.lag < self.interval:
            raise UserError(
                f"lag: found {shown(self.lag)} with interval {self.interval}, expected 0 <= lag < interval; "
                "a refresh is written before the next one begins"
            )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"weight_decay: found {self.weight_decay}, expected a number >= 0")
        if not 0 <= self.min_ratio <= self.max_ratio < math.inf:
            raise UserError(
                f"min_ratio {self.min_ratio} and max_ratio {self.max_ratio}: "
                "expected 0 <= min_ratio <= max_ratio"
            )
        if not math.isfinite(self.weight_decay * self.max_ratio):
            raise UserError(
                f"max_ratio: found {self.max_ratio}, expected one whose product with weight_decay "
                f"{self.weight_decay} is a number"
            )

    def estimator(self) -> Estimator:
        """How alpha is read; the reference preset has the released code's fix-finger."""
        released = self.preset == REFERENCE and self.fit == "fix_finger"
        return Estimator(RELEASED_FIT if released else self.fit, self.xmin_pos, self.farms)

    def bounds(self) -> Bounds:
        """How far decays may be from the base decay; the released code bounds the linear map alone."""
        if self.preset == REFERENCE and self.assign != "linear":
            return Bounds(self.weight_decay, 0.0, math.inf)
        return Bounds(self.weight_decay, self.min_ratio, self.max_ratio)

    def value_of(self, analysis: Analysis) -> float | None:
        """What is mapped; None where it is undefined."""
        value: float | None = getattr(analysis, self.metric)
        squared = self.preset == REFERENCE and self.metric in SQUARED
        return value**2 if squared and value is not None else value

    def decays(
        self, values: Mapping[str, float | None], last: Mapping[str, float], sizes: Mapping[str, int]
    ) -> dict[str, Assignment]:
        """The pure map from the metric's values to decays, by matrix.

        Args:
            values: None where undefined.
            last: the decay that each matrix has now.
            sizes: number of weights in each.
        """
        assigned = assign(values, self.bounds(), shape=self.assign, last=last)
        if self.normalize == "mean":
            return normalize_mean(assigned, self.weight_decay, sizes)
        return assigned

    def due(self, updates: int) -> bool:
        """Whether a refresh is due after so many updates.

        Before the first update and every ``interval`` updates; in the released code before the first and
        before every one whose number is a multiple of ``interval``, which is one update earlier.
        """
        if self.preset == REFERENCE:
            return updates == 0 or (updates + 1) % self.interval == 0
        return updates % self.interval == 0

    def measured_as(self, saved: Mapping[str, object]) -> bool:
        """Whether numbers that were found under saved settings mean here what they meant there."""
        own = json.loads(json.dumps(self.as_dict()))  # tuples come back from a file as lists
        return all(own[name] == saved.get(name) for name in MEASURING)

    def as_dict(self) -> dict[str, object]:
        """As plain data."""
        return dataclasses.asdict(self)
