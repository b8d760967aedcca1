"""AlphaDecay: when to refresh, and what a refresh does.

gather -> spectrum -> share -> assign -> write: each owner rank analyses its matrices, one all-gather shares
the alphas, and every rank writes the same decays into its optimizer's groups, found by module name.
"""

from __future__ import annotations

import collections
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alphadecay_dist.decay import weight_decay_of
from alphadecay_dist.engines import Host, host_for
from alphadecay_dist.errors import UserError, warn
from alphadecay_dist.refresh import Found, Refresh, numbers_of, report
from alphadecay_dist.settings import REFERENCE, Settings
from alphadecay_dist.sharding.agreement import RankLostError, gathered, require_equal, together
from alphadecay_dist.sharding.exchange import Exchange, exchange_device
from alphadecay_dist.sharding.groups import GROUP_KEY, weights_in
from alphadecay_dist.sharding.inventory import Weight, first_and_last, require_weights
from alphadecay_dist.sharding.layout import ShardSource
from alphadecay_dist.sharding.work import plan_for
from alphadecay_dist.spectral import FAILED, Analysis, Windows, analyze_each, measured_rates

STATE_KEY = "alphadecay"  # the one key of state_dict(): its value is a JSON string, safe in any checkpoint


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
        min_ratio: smallest decay, in base decays; with the linear map that of the smallest alpha (heaviest
            tail).
        max_ratio: largest decay, in base decays; with the linear map that of the largest alpha.
        assign: the map from alpha to decay: ``linear`` (as published), ``sqrt``, ``log2`` or ``sigmoid``.
        normalize: ``mean`` scales the decays so that their mean over all weights is the base decay;
            ``none`` (as published) does not.
        metric: what is mapped: ``alpha`` (as published) or another of ``alphadecay_dist.spectral.METRICS``.
        fit: the estimator of alpha: ``hill`` at the median (as published), ``goodness_of_fit`` or
            ``fix_finger``.
        xmin_pos: for ``hill``: the tail begins at eigenvalue floor(N / xmin_pos).
        farms: the windows whose pooled eigenvalues stand for a matrix (FARMS); None is the whole matrix.
        preset: ``reference`` repeats the released code: the first and the last nn.Linear of the model keep
            the base decay, fused weights stay whole, refreshes come one update earlier, its own fix-finger,
            norms squared, no bounds but for the linear map. Its biases and batch norms share their weight's
            decay: ``param_groups(..., follow=["bias", "batchnorm"])``.
        parts: sizes of fused weights by glob pattern, where names do not tell: ``{"*.qkv": (64, 64, 64)}``.
        dtype: the type that weights travel and are analysed in. By default their own; torch.bfloat16 halves
            the traffic of fp32 ones, torch.float32 takes DeepSpeed's fp32 masters.
        memory_budget: bytes that the gathering may hold at once on a rank, buffers and all. By default two of
            the largest matrices, which is the least that it can do with, or 256 MiB where that is more. As
            many gathered matrices are analysed at once as fit; the spectra's own workspace comes on top.

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
        metric: str = "alpha",
        fit: str = "hill",
        xmin_pos: float = 2.0,
        farms: Windows | None = None,
        preset: str | None = None,
        parts: Mapping[str, Sequence[int]] | None = None,
        dtype: torch.dtype | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self._host: Host = host_for(model, optimizer, engine, process_group)
        with together(self._host.group):
            self.settings = Settings(
                weight_decay,
                interval,
                min_ratio,
                max_ratio,
                assign=assign,
                normalize=normalize,
                metric=metric,
                fit=fit,
                xmin_pos=xmin_pos,
                farms=farms,
                preset=preset,
            )
            weights = weights_in(self._host.param_groups(), model, parts or {})
            if preset == REFERENCE:
                weights = _as_released(model, weights)
            _check_windows(weights, farms)
        self._weights = {unit: weight for weight in weights for unit in weight.units()}
        self._exchange, self._owners = _exchange(self._host, weights, self.settings, dtype, memory_budget)
        self._parts = {weight.name: _parts(weight) for weight in weights}
        sizes = {weight.name: math.prod(weight.shape) for weight in weights}
        self._sizes = {part: sizes[name] // len(own) for name, own in self._parts.items() for part in own}
        self._alphas: dict[str, float | None] = dict.fromkeys(self._sizes)
        self._decays = dict.fromkeys(self._sizes, weight_decay)
        self._updates = 0
        self._refreshed_at: int | None = None

    def step(self) -> Refresh | None:
        """Refresh if one is due, and count the update; at a micro-batch that updates nothing, do nothing.

        Collective where a refresh is due. Returns the refresh, if there was one.
        """
        if not self._host.at_boundary():
            return None
        due = self.settings.due(self._updates) and self._refreshed_at != self._updates
        refresh = self.refresh() if due else None
        self._updates += 1
        return refresh

    @torch.no_grad()
    def refresh(self) -> Refresh:
        """Analyse the weights as they are now and write the decays. Collective."""
        begin = time.perf_counter()
        analyses = self._analyses()
        shared = self._share(analyses)
        values = {name: found.value for name, found in shared.items()}
        assigned = self.settings.decays(values, self._decays, self._sizes)
        self._alphas = {name: found.alpha for name, found in shared.items()}
        self._decays = {name: assignment.weight_decay for name, assignment in assigned.items()}
        self._write()
        self._refreshed_at = self._updates
        modules = {
            name: report(parts, shared, assigned, self.settings.metric, self._decay_of(name))
            for name, parts in self._parts.items()
        }
        received = self._exchange.received_by_rank()
        return Refresh(self._updates, time.perf_counter() - begin, received, modules)

    def _analyses(self) -> dict[str, Analysis]:
        """Analyses of this rank's parts, but for those that failed: the other ranks wait for it to go on."""
        gathering = self._exchange.matrices()
        analyses = {}
        try:
            analyses = analyze_each(self._cut(gathering), self.settings.estimator(), self._exchange.room)
        except RankLostError:
            raise
        except Exception as error:
            warn(f"the spectra of this rank failed: {type(error).__name__}: {error}")
            collections.deque(gathering, maxlen=0)
        for unit, reason in self._exchange.lost.items():
            warn(f"{unit} could not be put together: {reason}")
        return analyses

    def _cut(self, matrices: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Matrices, fused ones cut into their parts."""
        for unit, tensor in matrices:
            yield from self._weights[unit].cut_up(unit, tensor)
            del tensor  # not while the next one is gathered

    def _share(self, analyses: Mapping[str, Analysis]) -> dict[str, Found]:
        """What all owners found, by part; what an owner has not analysed has failed there."""
        rank = dist.get_rank(self._host.group) if self._host.group else 0
        lost = Analysis(status=FAILED)
        parts = {unit: weight.parts(unit) for unit, weight in self._weights.items()}
        mine = {
            unit: [n for part in names for n in numbers_of(analyses.get(part, lost), self.settings)]
            for unit, names in parts.items()
            if self._owners[unit] == rank
        }
        shared = self._exchange.share(mine, {unit: 3 * len(names) for unit, names in parts.items()})
        return {
            part: Found.of(shared[unit][3 * place : 3 * place + 3], self._owners[unit])
            for unit, names in parts.items()
            for place, part in enumerate(names)
        }

    def state_dict(self) -> dict[str, str]:
        """What a resume needs, by module name: one JSON string under one fixed key."""
        modules = {
            name: {"alpha": self._alphas[name], "weight_decay": self._decays[name]} for name in self._alphas
        }
        state = {
            "step": self._updates,
            "refreshed_at": self._refreshed_at,
            "settings": self.settings.as_dict(),
            "modules": modules,
        }
        return {STATE_KEY: json.dumps(state)}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up a state and write its decays into the groups; call it after every load of the optimizer.

        The settings of this object stay as they were constructed.

        Collective.

        Raises:
            UserError: the state is another model's, or ranks were given different ones.
        """
        with together(self._host.group):
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
        require_equal(
            "AlphaDecay state: the ranks were given different ones",
            json.dumps(loaded, indent=0).splitlines(),
            self._host.group,
            "load the same state on every rank",
            kind=UserError,
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
            if name in self._parts:
                group["weight_decay"] = self._decay_of(name)

    def _decay_of(self, name: str) -> float:
        """The decay of a module: the mean of its parts'."""
        return weight_decay_of([self._decays[part] for part in self._parts[name]])


def _parts(weight: Weight) -> list[str]:
    return [part for unit in weight.units() for part in weight.parts(unit)]


def _as_released(model: nn.Module, weights: Sequence[Weight]) -> list[Weight]:
    """What the released code tunes: neither the first nor the last Linear, and no fused weight in parts."""
    left_out = first_and_last(model)
    kept = [replace(weight, cut=None) for weight in weights if weight.name not in left_out]
    require_weights(kept)
    return kept


def _check_windows(weights: Sequence[Weight], windows: Windows | None) -> None:
    """Refuse FARMS windows that do not fit into a matrix, before any training."""
    if windows is None:
        return
    for weight in weights:
        for shape in weight.part_shapes():
            try:
                windows.check_fit(shape)
            except ValueError as error:
                raise UserError(f"{weight.name}: {error}") from None


def _only_dtype(sources: Sequence[ShardSource]) -> torch.dtype:
    """The type of all sources."""
    dtypes = {source.dtype for source in sources}
    if len(dtypes) != 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise UserError(
            f"tuned weights have types {found}, expected one; name the one to read them in: dtype=..."
        )
    return dtypes.pop()


def tridiagonal_weight(device: torch.device, group: dist.ProcessGroup | None) -> float:
    """How much slower tridiagonalisation is than a product, by the slowest rank. Collective.

    To a power of ten, so coarse that every run on machines of one kind has the same owners.
    """
    rates = measured_rates(device)
    own = round(math.log10(rates.gram / rates.tridiagonal))
    return 10.0 ** max(exponent for (exponent,) in gathered([own], group))


def _exchange(
    host: Host,
    weights: Sequence[Weight],
    settings: Settings,
    dtype: torch.dtype | None,
    budget: int | None,
) -> tuple[Exchange, Mapping[str, int]]:
    """Plan owners and rounds for the weights as the engine holds them, and agree on the plan."""
    chosen = {**settings.as_dict(), "dtype": dtype, "memory_budget": budget}
    lines = [f"{name} {value}" for name, value in chosen.items()]
    lines += [f"{weight.name}: shape {weight.shape}, parts {_parts(weight)}" for weight in weights]
    require_equal(
        "the ranks were given different settings or models",
        lines,
        host.group,
        "construct AlphaDecay with the same ones on every rank",
        kind=UserError,
    )
    sources = host.sources(weights, dtype)
    tridiagonal = tridiagonal_weight(exchange_device(sources, host.group), host.group)
    world_size = dist.get_world_size(host.group) if host.group else 1
    with together(host.group):
        dtype = dtype or _only_dtype(sources)
        blocks, planned = plan_for(
            weights,
            world_size,
            itemsize=dtype.itemsize,
            tridiagonal=tridiagonal,
            windows=settings.farms,
            budget=budget,
        )
    return Exchange(sources, blocks, planned, dtype, host.group), planned.owners
