"""The settings of weight decay: one object, for the library's arguments and a recipe's ``decay`` section."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from alphadecay_dist.decay import SHAPES, Assignment, Bounds
from alphadecay_dist.decay.policies import POLICIES, Policy
from alphadecay_dist.decay.presets import PRESETS, PUBLISHED, Preset
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.spectral import FIT_NAMES, METRICS, MIN_EIGENVALUES, Analysis, Estimator, Windows

NORMALIZE = ("none", "mean")
DEVICES = ("auto", "cuda", "cpu")
GROUPS, PREMULTIPLY, AUTO = "groups", "premultiply", "auto"
APPLY = (GROUPS, PREMULTIPLY, AUTO)
RELEASED_FITS = {fit for preset in PRESETS.values() for fit in preset.fits.values()}
CHOOSABLE_FITS = tuple(fit for fit in FIT_NAMES if fit not in RELEASED_FITS)
NEVER_BELOW_ONE = ("alpha", "stable_rank", "nuclear_to_frobenius")  # what sqrt and log2 can map
MEASURING = ("metric", "fit", "xmin_pos", "farms", "preset")  # what decides the numbers that are mapped
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of weight decay.

    Attributes:
        policy: a name of ``POLICIES``: ``alphadecay``, or ``uniform`` for the base decay everywhere.
        preset: ``reference`` repeats the released code: the first and the last nn.Linear keep the base decay,
            fused weights stay whole, refreshes come one update earlier, its own fix-finger, norms squared,
            no bounds but for the linear map. In the library its biases and batch norms share their weight's
            decay: ``param_groups(..., follow=["bias", "batchnorm"])``. ``paper`` has of this what the paper's
            text says: norms squared, no bounds but for the linear map. Or null.
        weight_decay: the base decay.
        interval: optimizer updates between refreshes.
        min_ratio: smallest decay, in base decays; with the linear map that of the heaviest tail.
        max_ratio: largest decay, in base decays; with the linear map that of the lightest tail.
        assign: the map from alpha to decay: ``linear`` (as published), ``sqrt``, ``log2`` or ``sigmoid``.
        normalize: ``mean`` scales the decays so that their mean over all weights is the base decay;
            ``none`` (as published) does not.
        metric: what is mapped: ``alpha`` (as published) or another of ``alphadecay_dist.spectral.METRICS``.
        fit: the estimator of alpha: ``hill`` (as published), ``goodness_of_fit`` or ``fix_finger``.
        xmin_pos: for ``hill``: the tail begins at eigenvalue floor(N / xmin_pos); 2 is the median.
        farms_rows: rows of FARMS' windows, whose pooled eigenvalues stand for a matrix; null analyses whole
            matrices.
        farms_aspect: rows over columns of a window.
        farms_grid: windows along the rows and along the columns.
        memory_budget: bytes, or in a recipe such as 256MiB, that the gathering may hold at once on a rank,
            buffers included. null is two of the largest matrices, which is the least that it needs, or
            256 MiB where that is more. As many gathered matrices are analysed at once as fit; the spectra's
            own workspace comes on top.
        lag: updates between a refresh and the writing of its decays, below ``interval``, in which a host
            thread computes its spectra in the background; 0 lets training wait.
        device: where spectra are computed: ``cuda`` (this rank's current GPU), ``cpu`` (its host threads) or
            ``auto``: where the weights are.
        apply: ``groups`` (a param group per matrix, any optimizer), ``premultiply`` (two groups, which update
            faster; the same weights; AdamW alone) or ``auto`` (in a recipe premultiply where optimizer and
            engine allow it; in the library what the groups were built for).

    Raises:
        UserError: a setting out of its range, or choices that exclude each other.
    """

    policy: str = "alphadecay"
    preset: str | None = None
    weight_decay: float = 0.1
    interval: int = 500
    min_ratio: float = 2 / 3
    max_ratio: float = 5.0
    assign: str = "linear"
    normalize: str = "none"
    metric: str = "alpha"
    fit: str = "hill"
    xmin_pos: float = 2.0
    farms_rows: int | None = None
    farms_aspect: float = 1.0
    farms_grid: tuple[int, int] = (1, 1)
    memory_budget: int | None = None
    lag: int = 0
    device: str = "auto"
    apply: str = GROUPS

    def __post_init__(self) -> None:
        _plain_numbers(self)
        for name, known in CHOICES.items():
            found = getattr(self, name)
            if not ((found is None and name == "preset") or (isinstance(found, str) and found in known)):
                raise UserError(f"{name}: found {shown(found)}, expected one of {', '.join(known)}")
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
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
                f"min_ratio: found {self.min_ratio} with max_ratio {self.max_ratio}, expected "
                "0 <= min_ratio <= max_ratio"
            )
        if not math.isfinite(self.weight_decay * self.max_ratio):
            raise UserError(
                f"max_ratio: found {self.max_ratio}, expected one whose product with weight_decay "
                f"{self.weight_decay} is a number"
            )
        budget = self.memory_budget
        if budget is not None and (not isinstance(budget, int) or budget < 1):
            raise UserError(
                f"memory_budget: found {shown(budget)}, expected a whole number of bytes above 0, or None"
            )

    def _check_choices(self) -> None:
        why = self.choices.refused.get(self.metric)
        if why is not None:
            raise UserError(
                f"metric: found {self.metric!r} with preset {self.preset!r}, which does not repeat {why}; "
                "use another metric, or no preset"
            )
        if self.assign in ("sqrt", "log2") and self.metric not in NEVER_BELOW_ONE:
            raise UserError(
                f"metric: found {self.metric!r} with assign {self.assign!r}, whose map needs one never "
                f"below 1: {', '.join(NEVER_BELOW_ONE)}; or use assign linear or sigmoid"
            )
        if self.lag and self.row.measure is not None and not self.row.overlaps:
            raise UserError(
                f"lag: found {self.lag} with policy {self.policy!r}, expected 0: what it measures cannot be "
                "computed in the background"
            )
        try:
            few = self.estimator().windows
        except ValueError as error:
            raise UserError(str(error)) from None
        if few is not None and few.eigenvalues < MIN_EIGENVALUES:
            raise UserError(
                f"farms: found windows with {few.eigenvalues} eigenvalues, expected {MIN_EIGENVALUES} or "
                "more; use larger windows or a finer grid"
            )

    @property
    def row(self) -> Policy:
        """The policy's row."""
        return POLICIES[self.policy]

    @property
    def choices(self) -> Preset:
        """What the preset chooses."""
        return PUBLISHED if self.preset is None else PRESETS[self.preset]

    @property
    def farms(self) -> Windows | None:
        """FARMS' windows, if there are any."""
        if self.farms_rows is None:
            return None
        return Windows(self.farms_rows, self.farms_aspect, self.farms_grid)

    def estimator(self) -> Estimator:
        """How alpha is read."""
        return Estimator(self.choices.fits.get(self.fit, self.fit), self.xmin_pos, self.farms)

    def bounds(self) -> Bounds:
        """How far decays may be from the base decay."""
        bounded = self.choices.bounded
        if bounded is not None and self.assign not in bounded:
            return Bounds(self.weight_decay, 0.0, math.inf)
        return Bounds(self.weight_decay, self.min_ratio, self.max_ratio)

    def value_of(self, analysis: Analysis) -> float | None:
        """What is mapped; None where it is undefined."""
        value: float | None = getattr(analysis, self.metric)
        squared = self.metric in self.choices.squared
        return value**2 if squared and value is not None else value

    def decays(
        self, values: Mapping[str, float | None], last: Mapping[str, float], sizes: Mapping[str, int]
    ) -> dict[str, Assignment]:
        """The policy's pure map from measured values to decays, by matrix.

        Args:
            values: None where undefined.
            last: the decay that each matrix has now.
            sizes: number of weights in each.
        """
        return self.row.map(self, values, last, sizes)

    def due(self, updates: int) -> bool:
        """Whether the policy acts after so many updates."""
        return self.row.due(self, updates)

    def measured_as(self, saved: Mapping[str, object]) -> bool:
        """Whether numbers that were measured under saved settings mean here what they meant there."""
        own = self.as_dict()
        same_policy = saved.get("policy", "alphadecay") == self.policy  # earlier states name none
        return same_policy and all(own[name] == saved.get(name) for name in MEASURING)

    def as_dict(self) -> dict[str, object]:
        """What decides the decays, as a JSON has it."""
        windows = self.farms
        names = ("policy", "weight_decay", "interval", "min_ratio", "max_ratio", "assign", "normalize")
        return {
            **{name: getattr(self, name) for name in (*names, "metric", "fit", "xmin_pos", "preset", "lag")},
            "farms": windows and {**dataclasses.asdict(windows), "grid": list(windows.grid)},
        }


def settings_from(base: Settings | None, given: Mapping[str, Any]) -> Settings:
    """Settings from keyword arguments.

    Args:
        base: what is not given is taken from these; without them ``weight_decay`` has to be given.
        given: by name; ``farms`` takes :class:`alphadecay_dist.spectral.Windows`.

    Raises:
        UserError: a value that is not allowed.
        TypeError: an argument that is unknown or missing.
    """
    if base is not None and not isinstance(base, Settings):
        raise UserError(f"settings: found {shown(base)}, expected Settings, or keyword arguments instead")
    values = dict(given)
    if "farms" in values:
        values |= _farms(values.pop("farms"))
    known = [setting.name for setting in dataclasses.fields(Settings)]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, [*known, "farms"], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"AlphaDecay() got an unexpected keyword argument {name!r}{hint}")
    if base is None and "weight_decay" not in values:
        raise TypeError("AlphaDecay() missing the keyword argument 'weight_decay', the base decay")
    return dataclasses.replace(base, **values) if base is not None else Settings(**values)


def _farms(windows: object) -> dict[str, Any]:
    if windows is None:
        return {"farms_rows": None}
    if not isinstance(windows, Windows):
        raise UserError(f"farms: found {shown(windows)}, expected alphadecay_dist.spectral.Windows or None")
    return {"farms_rows": windows.rows, "farms_aspect": windows.aspect, "farms_grid": windows.grid}


def _plain_numbers(settings: Settings) -> None:
    """Turn numpy's numbers, which JSON does not take, into Python's."""
    for name in ("weight_decay", "min_ratio", "max_ratio", "xmin_pos"):
        found = getattr(settings, name)
        if not isinstance(found, Real):
            raise UserError(f"{name}: found {shown(found)}, expected a number")
        if not isinstance(found, int | float):
            object.__setattr__(settings, name, float(found))
    for name in ("interval", "lag"):
        found = getattr(settings, name)
        if isinstance(found, Integral) and not isinstance(found, int):
            object.__setattr__(settings, name, int(found))
