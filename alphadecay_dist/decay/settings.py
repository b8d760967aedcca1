"""The settings of weight decay: one object, for the library's arguments and a recipe's ``decay`` section."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from alphadecay_dist.decay import Assignment, Bounds
from alphadecay_dist.decay.checks import check
from alphadecay_dist.decay.choices import (
    DECIDING,
    GROUPS,
    MEASURING,
)
from alphadecay_dist.decay.maps import Moment
from alphadecay_dist.decay.policies import (
    COORDINATE_DECAY,
    GRADIENT_MOMENTS,
    GRADIENT_NORM,
    MATRIX_RATE,
    NORM_RATIO,
    POLICIES,
    SPECTRUM,
    Policy,
)
from alphadecay_dist.decay.presets import PRESETS, PUBLISHED, Preset
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.spectral import Analysis, Estimator, Windows

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of weight decay.

    Attributes:
        policy: a name of ``POLICIES``; docs/methods.md has them all. ``alphadecay`` (as published),
            ``uniform`` (the base decay everywhere), ``none`` (no decay), ``awd``, ``adadecay``,
            ``adadecay_original``, ``gradient_norm``, ``static``, ``shuffled``, ``uniform_matched``,
            ``adamc``, ``cautious``, ``llr`` (learning rates, not decays), ``monitor`` (nothing is moved).
        preset: ``reference`` repeats the released code: the first and the last nn.Linear keep the base decay,
            fused weights stay whole, refreshes come one update earlier, its own fix-finger, norms squared,
            no bounds but for the linear map, which gives equal values the largest decay. There biases and
            batch norms share their weight's decay as well: ``param_groups(..., follow=["bias",
            "batchnorm"])``, in a recipe ``decay.follow``. ``reference_vit`` repeats its twin for images: the
            same, but refreshes come at the multiples of the interval, an epoch, and gradient norms count from
            the first update on. ``paper`` has of this what the paper's text says: norms squared, no bounds
            but for the linear map. Or null.
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
        heads: whether q, k, v and o of attention are analysed head by head; the mean of the heads' decays is
            their weight's.
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
        cautious: decay no coordinate where the optimizer's update and the weight disagree in sign (arXiv
            2510.12402), whatever the policy.
        factor: of ``awd``, which the base decay is multiplied by; 100 as released for LLaMA, 50 for ViT.
        factors: of ``static``, in base decays by part of a module's name or glob, the first that fits:
            ``q_proj=0.7,mlp=2``; null is what the map makes of typical alphas.
        seed: of ``shuffled``.
        until: updates after which nothing is measured any more; in a recipe below 1 the fraction of
            train.steps; null is off.

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
    heads: bool = False
    memory_budget: int | None = None
    lag: int = 0
    device: str = "auto"
    apply: str = GROUPS
    cautious: bool = False
    factor: float = 100.0
    factors: str | None = None
    seed: int = 0
    until: float | None = None

    def __post_init__(self) -> None:
        _plain_numbers(self)
        check(self)

    @property
    def row(self) -> Policy:
        """The policy's row."""
        return POLICIES[self.policy]

    @property
    def is_cautious(self) -> bool:
        """Whether decays are held back where update and weight disagree."""
        return self.cautious or self.row.cautious

    @property
    def needs_groups(self) -> bool:
        """Whether every tuned weight must have a param group of its own."""
        return self.is_cautious or self.row.moves in (COORDINATE_DECAY, MATRIX_RATE)

    @property
    def what_needs_groups(self) -> str:
        """In words, for messages."""
        return "cautious decay" if self.is_cautious else f"policy {self.policy!r}"

    @property
    def start(self) -> float:
        """What every matrix has before the policy acts: a decay, or a rate in base learning rates."""
        return self.row.start * (1.0 if self.row.moves == MATRIX_RATE else self.weight_decay)

    @property
    def reads_spectra(self) -> bool:
        """Whether matrices are gathered and analysed."""
        return self.row.measure == SPECTRUM

    @property
    def reads_gradients(self) -> bool:
        """Whether the gradients of the whole update must be there when it acts."""
        return self.row.measure in (GRADIENT_NORM, GRADIENT_MOMENTS, NORM_RATIO)

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

    def bounds(self, base: float | None = None) -> Bounds:
        """How far decays may be from the base decay, or other numbers from another base."""
        base, choices = self.weight_decay if base is None else base, self.choices
        if choices.bounded is not None and self.assign not in choices.bounded:
            return Bounds(base, 0.0, math.inf)
        equal = self.max_ratio if choices.equal_gets_most and self.assign == "linear" else 1.0
        return Bounds(base, self.min_ratio, self.max_ratio, equal)

    def value_of(self, analysis: Analysis) -> float | None:
        """What is mapped; None where it is undefined."""
        value: float | None = getattr(analysis, self.metric)
        squared = self.metric in self.choices.squared
        return value**2 if squared and value is not None else value

    def spanning(self: S, updates: int) -> S:
        """The same for a run of so many updates, of which ``until`` may be a fraction."""
        if self.until is None or self.until >= 1:
            return self
        return dataclasses.replace(self, until=round(self.until * updates))

    def assign_to(self, moment: Moment) -> dict[str, Assignment]:
        """The policy's pure map from measured values to what each matrix gets."""
        return self.row.map(self, moment)

    def due(self, updates: int) -> bool:
        """Whether the policy acts after so many updates."""
        return self.row.due(self, updates)

    def due_at_first(self, updates: int) -> bool:
        """Whether it acts at once in a run that another policy began, and that is so many updates old."""
        return self.row.due(self, 0) and (self.until is None or updates <= self.until)

    def measured_as(self, saved: Mapping[str, object]) -> bool:
        """Whether numbers that were measured under saved settings mean here what they meant there."""
        own = self.as_dict()
        before = {"policy": "alphadecay", "heads": False, **saved}  # earlier states name none
        return all(own[name] == before.get(name) for name in ("policy", *MEASURING))

    def as_dict(self) -> dict[str, object]:
        """What decides the decays, as a JSON has it."""
        windows = self.farms
        return {
            **{name: getattr(self, name) for name in DECIDING},
            "farms": windows and {**dataclasses.asdict(windows), "grid": list(windows.grid)},
        }


def only_watches(base: Settings | None, given: Mapping[str, Any]) -> bool:
    """Whether the policy that is asked for moves nothing; of settings that are not checked yet."""
    name = given.get("policy", getattr(base, "policy", None))
    row = POLICIES.get(name) if isinstance(name, str) else None
    return row is not None and row.moves is None


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
    if base is None and "weight_decay" not in values and not only_watches(base, values):
        raise TypeError("AlphaDecay() missing the keyword argument 'weight_decay', the base decay")
    return dataclasses.replace(base, **values) if base is not None else Settings(**values)


def _farms(windows: object) -> dict[str, Any]:
    if windows is None:
        return {"farms_rows": None}
    if not isinstance(windows, Windows):
        raise UserError(f"farms: found {shown(windows)}, expected alphadecay_dist.spectral.Windows or None")
    return {"farms_rows": windows.rows, "farms_aspect": windows.aspect, "farms_grid": windows.grid}


def _plain_numbers(settings: Settings) -> None:
    """Turn numpy's numbers, which JSON does not take, into Python's; a truth value is none."""
    for name in ("interval", "lag", "seed", "until", "memory_budget"):
        if isinstance(getattr(settings, name), bool):
            raise UserError(f"{name}: found {shown(getattr(settings, name))}, expected a number")
    for name in ("weight_decay", "min_ratio", "max_ratio", "xmin_pos", "factor"):
        found = getattr(settings, name)
        if not isinstance(found, Real) or isinstance(found, bool):
            raise UserError(f"{name}: found {shown(found)}, expected a number")
        if not isinstance(found, int | float):
            object.__setattr__(settings, name, float(found))
    for name in ("interval", "lag", "seed"):
        found = getattr(settings, name)
        if isinstance(found, Integral) and not isinstance(found, int):
            object.__setattr__(settings, name, int(found))
