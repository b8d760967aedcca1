"""AlphaDecay: when to refresh, and what a refresh does.

gather -> spectrum -> share -> assign -> write: each owner rank analyses its matrices, one all-gather shares
the alphas, and every rank writes the same decays into its optimizer's groups, found by module name.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from alphadecay_dist.decay import SHAPES, Assignment, Bounds, assign, normalize_mean
from alphadecay_dist.engines import Host, host_for
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.inventory import GROUP_KEY, UNTUNED, Matrix
from alphadecay_dist.sharding.layout import numel
from alphadecay_dist.sharding.ownership import default_budget, plan
from alphadecay_dist.spectral import FITS, STATUSES, Analysis, analyze_each

NORMALIZE = ("none", "mean")
STATE_KEY = "alphadecay"  # the one key of state_dict(): its value is a JSON string, safe in any checkpoint


@dataclass(frozen=True)
class ModuleRefresh:
    """What one refresh found and wrote for one module.

    Attributes:
        alpha: tail exponent; None where undefined.
        weight_decay: the decay written into the module's param group.
        owner: rank that analysed the matrix.
        status: "assigned", "all_equal", or why alpha is undefined (``alphadecay_dist.spectral.STATUSES``),
            in which case the module keeps the decay that it had.
    """

    alpha: float | None
    weight_decay: float
    owner: int
    status: str


@dataclass(frozen=True)
class Refresh:
    """One refresh, equal on every rank but for ``seconds``.

    Attributes:
        step: optimizer updates finished before it.
        seconds: wall-clock time on this rank.
        bytes_received: bytes of weights that each rank received from others.
        modules: results by module name.
    """

    step: int
    seconds: float
    bytes_received: tuple[int, ...]
    modules: dict[str, ModuleRefresh]


@dataclass(frozen=True)
class Settings:
    """The settings of the rule; see :class:`AlphaDecay`."""

    weight_decay: float
    interval: int
    min_ratio: float
    max_ratio: float
    assign: str = "linear"
    normalize: str = "none"
    fit: str = "hill"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"interval: found {self.interval}, expected 1 or more updates")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"weight_decay: found {self.weight_decay}, expected a number >= 0")
        if not 0 <= self.min_ratio <= self.max_ratio < math.inf:
            raise UserError(
                f"min_ratio {self.min_ratio} and max_ratio {self.max_ratio}: "
                "expected 0 <= min_ratio <= max_ratio"
            )
        for name, known in (("assign", SHAPES), ("normalize", NORMALIZE), ("fit", FITS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(known)}")


class AlphaDecay:
    """Gives every tuned matrix its own weight decay, read from its spectrum (arXiv 2506.14562).

    Construction computes nothing. Call :meth:`step` once a micro-batch before ``engine.step()``, or without
    an engine once an update, after unscaling and clipping and before ``optimizer.step()``.

    Args:
        model: the model whose :func:`alphadecay_dist.param_groups` the optimizer was made of.
        optimizer: the torch optimizer given to the engine, or used alone.
        engine: the ``DeepSpeedEngine``, where there is one.
        process_group: ranks that share the work, without an engine; the default group if there is one.
        weight_decay: the base decay.
        interval: optimizer updates between refreshes.
        min_ratio: decay of the smallest alpha (heaviest tail), in base decays.
        max_ratio: decay of the largest alpha, in base decays.
        assign: the map from alpha to decay: ``linear`` (as published), ``sqrt``, ``log2`` or ``sigmoid``.
        normalize: ``mean`` scales the decays so that their mean over all weights is the base decay;
            ``none`` (as published) does not.
        fit: the estimator of alpha: ``hill`` at the median (as published), ``goodness_of_fit`` or
            ``fix_finger``.
        memory_budget: bytes of gathered weights that one owner takes in a round; one round is worked on
            while the next one arrives. By default two of the largest matrices, or 256 MiB where that is more.

    Raises:
        UserError: a setting out of its range, groups that param_groups() did not make, or an engine that
            cannot be served. All ranks must construct it together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        engine: Any | None = None,
        process_group: dist.ProcessGroup | None = None,
        weight_decay: float,
        interval: int = 500,
        min_ratio: float = 2 / 3,
        max_ratio: float = 5.0,
        assign: str = "linear",
        normalize: str = "none",
        fit: str = "hill",
        memory_budget: int | None = None,
    ) -> None:
        self.settings = Settings(weight_decay, interval, min_ratio, max_ratio, assign, normalize, fit)
        self._host: Host = host_for(optimizer, engine, process_group)
        matrices = _tuned_in(model, self._host.param_groups())
        self._exchange, self._owners = _exchange(self._host, matrices, memory_budget)
        self._alphas: dict[str, float | None] = {matrix.module: None for matrix in matrices}
        self._decays = {matrix.module: weight_decay for matrix in matrices}
        self._sizes = {matrix.module: math.prod(matrix.shape) for matrix in matrices}
        self._updates = 0
        self._refreshed_at: int | None = None

    def step(self) -> Refresh | None:
        """Refresh if one is due, and count the update; at a micro-batch that updates nothing, do nothing.

        Collective where a refresh is due. Returns the refresh, if there was one.
        """
        if not self._host.at_boundary():
            return None
        due = self._updates % self.settings.interval == 0 and self._refreshed_at != self._updates
        refresh = self.refresh() if due else None
        self._updates += 1
        return refresh

    @torch.no_grad()
    def refresh(self) -> Refresh:
        """Analyse the weights as they are now and write the decays. Collective."""
        begin = time.perf_counter()
        analyses = analyze_each(self._exchange.matrices(), fit=self.settings.fit)
        found = {name: _numbers(analysis) for name, analysis in analyses.items()}
        shared = self._exchange.share(found, width=2)
        alphas = {name: None if math.isnan(shared[name][0]) else shared[name][0] for name in self._alphas}
        assigned = self._assign(alphas)
        self._alphas = alphas
        self._decays = {name: assignment.weight_decay for name, assignment in assigned.items()}
        self._write()
        self._refreshed_at = self._updates
        modules = {}
        for name, alpha in alphas.items():
            status = STATUSES[int(shared[name][1])] if alpha is None else assigned[name].case
            modules[name] = ModuleRefresh(alpha, self._decays[name], self._owners[name], status)
        received = self._exchange.received_by_rank()
        return Refresh(self._updates, time.perf_counter() - begin, received, modules)

    def _assign(self, alphas: Mapping[str, float | None]) -> dict[str, Assignment]:
        """The pure map from all alphas to all decays, the same on every rank."""
        settings = self.settings
        bounds = Bounds(settings.weight_decay, settings.min_ratio, settings.max_ratio)
        assigned = assign(alphas, bounds, shape=settings.assign, last=self._decays)
        if settings.normalize == "mean":
            assigned = normalize_mean(assigned, settings.weight_decay, self._sizes)
        return assigned

    def state_dict(self) -> dict[str, str]:
        """What a resume needs, by module name: one JSON string under one fixed key."""
        modules = {
            name: {"alpha": self._alphas[name], "weight_decay": self._decays[name]} for name in self._alphas
        }
        state = {
            "step": self._updates,
            "refreshed_at": self._refreshed_at,
            "settings": asdict(self.settings),
            "modules": modules,
        }
        return {STATE_KEY: json.dumps(state)}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up a state and write its decays into the groups; call it after every load of the optimizer.

        The settings of this object stay as they were constructed.

        Raises:
            UserError: the state is another model's.
        """
        if STATE_KEY not in state:
            raise UserError(f"AlphaDecay state: has no {STATE_KEY!r}; give what state_dict() returned")
        loaded = json.loads(state[STATE_KEY])
        modules = loaded["modules"]
        if set(modules) != set(self._alphas):
            odd = sorted(set(modules) ^ set(self._alphas))
            raise UserError(
                f"AlphaDecay state: {len(modules)} modules saved, {len(self._alphas)} tuned here; "
                f"{odd[0]!r} is in one alone: load the state of the same model"
            )
        self._updates = loaded["step"]
        self._refreshed_at = loaded["refreshed_at"]
        for name in self._alphas:
            self._alphas[name] = modules[name]["alpha"]
            self._decays[name] = modules[name]["weight_decay"]
        self._write()

    def _write(self) -> None:
        """Write each module's decay into its group, fetched anew and found by name."""
        for group in self._host.param_groups():
            name = group.get(GROUP_KEY)
            if name in self._decays:
                group["weight_decay"] = self._decays[name]


def _numbers(analysis: Analysis) -> tuple[float, float]:
    """Alpha (NaN where undefined) and the status' number, as they travel."""
    return math.nan if analysis.alpha is None else analysis.alpha, float(STATUSES.index(analysis.status))


def _tuned_in(model: nn.Module, groups: list[dict[str, Any]]) -> list[Matrix]:
    """The matrices that the optimizer's groups name, in the groups' order."""
    names = [group[GROUP_KEY] for group in groups if group.get(GROUP_KEY, UNTUNED) != UNTUNED]
    if not names:
        raise UserError(
            f"optimizer: none of its {len(groups)} param groups names a module to tune (key {GROUP_KEY!r}); "
            "build them with alphadecay_dist.param_groups(model, ...)"
        )
    modules = dict(model.named_modules())
    for name in names:
        if names.count(name) > 1 or not isinstance(modules.get(name), nn.Linear):
            raise UserError(
                f"param group {name!r}: expected one group for one nn.Linear of the model given; "
                "build the groups with alphadecay_dist.param_groups(model, ...) from that same model"
            )
    return [Matrix(n, modules[n].weight, (modules[n].out_features, modules[n].in_features)) for n in names]


def _exchange(host: Host, matrices: list[Matrix], budget: int | None) -> tuple[Exchange, Mapping[str, int]]:
    """Plan owners and rounds for the matrices as the engine holds them, and agree on the plan."""
    sources = host.sources(matrices)
    dtypes = {source.dtype for source in sources}
    if len(dtypes) != 1:
        raise UserError(f"tuned weights have types {sorted(map(str, dtypes))}, expected one")
    dtype = dtypes.pop()
    nbytes = {source.name: numel(source) * dtype.itemsize for source in sources}
    world_size = dist.get_world_size(host.group) if host.group else 1
    planned = plan(
        {matrix.module: matrix.shape for matrix in matrices},
        nbytes,
        world_size,
        default_budget(nbytes) if budget is None else budget,
    )
    return Exchange(sources, planned, dtype, host.group), planned.owners
