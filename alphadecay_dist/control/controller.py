"""AlphaDecay: when to refresh, and what a refresh does.

measure -> map -> write, by a row of the table of policies: the measure gives a number for each matrix (a
spectrum is computed by its owner rank, and one all-gather shares what was found), a pure map turns these into
decays, and every rank writes the same decays where its optimizer applies them, found by module name. With a
lag the spectra are computed in the background, see :mod:`alphadecay_dist.control.lagged`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from alphadecay_dist.control.advice import Advice
from alphadecay_dist.control.lagged import PendingRefresh
from alphadecay_dist.control.measure import LaggedMeasure, Measured
from alphadecay_dist.control.measures import measure_for
from alphadecay_dist.control.module_table import ModuleTable
from alphadecay_dist.control.options import dtype_of, require_parts
from alphadecay_dist.control.refresh import Measurement, Refresh, TunedModule
from alphadecay_dist.control.state import DecayState
from alphadecay_dist.control.writers import writer_for
from alphadecay_dist.decay import Assignment
from alphadecay_dist.decay.assign import KEPT
from alphadecay_dist.decay.maps import Moment
from alphadecay_dist.decay.settings import Settings, only_watches, settings_from
from alphadecay_dist.engines.given import unwrapped
from alphadecay_dist.engines.host import Host, host_for
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.coverage import coverage
from alphadecay_dist.params.group_snapshot import GroupSnapshot
from alphadecay_dist.params.groups import followers_in, weights_in
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.planning import analysed, require_factors
from alphadecay_dist.spectral import Estimator

STATE_KEY = "alphadecay"  # the one key of state_dict(): its value is a JSON string, safe in any checkpoint


class AlphaDecay:
    """Gives every tuned matrix its own weight decay, read from its spectrum (arXiv 2506.14562).

    Construction computes nothing. Call :meth:`step` once a micro-batch before ``engine.step()``, or without
    an engine once an update, after unscaling and clipping and before ``optimizer.step()``.

    Args:
        model: the model whose :func:`alphadecay_dist.param_groups` the optimizer was made of; or the
            ``DeepSpeedEngine`` that trains it, which is then ``engine`` too.
        optimizer: the torch optimizer given to the engine, or used alone; accelerate's and Lightning's
            wrappers of it too. Without an engine a list of several, over which the tuned weights and the
            rest are divided in any way: one map goes over all tuned weights.
        settings: an object of :class:`alphadecay_dist.decay.settings.Settings`, such as a recipe's ``decay``.
        engine: the ``DeepSpeedEngine``, where there is one.
        process_group: ranks that share the work, without an engine; the default group if there is one. They
            must hold the same weights: those of a mesh of one dimension, which may be given itself.
        parts: sizes of fused weights by glob pattern, where names do not tell: ``{"*.qkv": (64, 64, 64)}``.
        dtype: the type that weights travel and are analysed in, or its name. By default their own;
            torch.bfloat16 halves the traffic of fp32 ones, torch.float32 takes DeepSpeed's fp32 masters.
        histograms: whether a :class:`Refresh` has the histograms of the spectra, which ``log_refresh`` keeps.
        **given: any attribute of ``Settings``, in place of that object's or of its defaults:
            ``weight_decay`` (needed without ``settings``), ``interval``, ``min_ratio``, ``max_ratio``,
            ``assign``, ``normalize``, ``metric``, ``fit``, ``xmin_pos``, ``heads``, ``preset``,
            ``policy``, ``memory_budget``, ``lag``, ``device``, ``apply``; and ``farms``, the
            :class:`alphadecay_dist.spectral.Windows` whose pooled eigenvalues stand for a matrix (FARMS).

    Raises:
        UserError: a setting out of its range, groups that param_groups() did not make, or an engine that
            cannot be served; a lag where TF32 or bf16 products of fp32 matrices are switched on, for the
            spectra in the background would be computed with them. All ranks must construct it together.
        TypeError: an unknown keyword argument.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        settings: Settings | None = None,
        *,
        engine: Any | None = None,
        process_group: dist.ProcessGroup | None = None,
        parts: Mapping[str, Sequence[int]] | None = None,
        dtype: torch.dtype | str | None = None,
        histograms: bool = False,
        **given: Any,
    ) -> None:
        watches = only_watches(settings, given)
        trained = unwrapped(model, optimizer, engine, process_group, watches=watches)
        self._host: Host = host_for(*trained, watches=watches)
        self._ranks = Collectives(self._host.group)
        with self._ranks.raise_on_all_ranks():
            self.settings = settings_from(settings, given)
            _require_whole_updates(self.settings)
            self._read_as = dtype_of(dtype)
            require_parts(parts)
            named = self._named(trained.model, parts or {})
            weights = analysed(named, trained.model, self.settings, parts)
            require_factors(self.settings, weights)
        self._measure = measure_for(Measured(self._host, weights, self.settings, self._read_as, histograms))
        self._table = ModuleTable(weights, self.settings)
        self._updates = 0
        self._refreshed_at: int | None = None
        self._written_at: int | None = None
        self._pending: PendingRefresh | None = None
        self._found: tuple[int, Mapping[str, Measurement]] | None = None  # by the last refresh, and when
        with self._ranks.raise_on_all_ranks():
            self._writer = writer_for(self.settings, self._host, named)
        groups = [] if watches else self._host.param_groups()
        self._groups = GroupSnapshot(groups)
        covered = coverage(trained.model, weights, followers_in(groups))
        self._advice = Advice(self._host, self.settings, str(self._table), covered)

    @property
    def modules(self) -> dict[str, TunedModule]:
        """Every tuned module by name, with its alpha, decay and status as they are now."""
        return self._table.modules()

    def spectra_at(
        self, updates: int, estimator: Estimator, dtype: torch.dtype | None
    ) -> Mapping[str, Measurement]:
        """What the last refresh found, by part, for others who would measure the same.

        Args:
            updates: finished before the weights were taken.
            estimator: how alpha is to be read.
            dtype: the type in which weights are to be read.

        Returns:
            Nothing where that refresh was at another update, or measured something else.
        """
        alike = self.settings.reads_spectra and self.settings.estimator() == estimator
        if self._found is None or self._found[0] != updates or not alike or self._read_as != dtype:
            return {}
        return self._found[1]

    def __repr__(self) -> str:
        """What is tuned, and how far it is."""
        at = self._refreshed_at
        last = "no refresh yet" if at is None else f"last refresh before update {at}"
        return (
            f"AlphaDecay({self._table} tuned; weight_decay={self.settings.weight_decay}, "
            f"interval={self.settings.interval}; {self._updates} updates counted, {last})"
        )

    def step(self, boundary: bool | None = None) -> Refresh | None:
        """Refresh if one is due, and count the update; at a micro-batch that updates nothing, do nothing.

        With a lag, a refresh that is due takes its snapshot and returns None; it is written, and returned,
        by the call before update ``step + lag + 1``, on all ranks alike.

        Collective where a refresh is due or to be written, always in the calling thread.

        Args:
            boundary: whether the update comes after this micro-batch; None asks the engine, and is True
                without one. To be given where the engine is told inside backward, after this call, as
                Accelerate does: ``step(boundary=accelerator.sync_gradients)``.

        Returns:
            The refresh that was written, if there was one.
        """
        if boundary is not None and self.settings.reads_gradients:
            refusal = self._host.early_gradients_refusal()
            if refusal is not None:
                raise UserError(f"step(boundary={boundary}): {refusal}")
        if boundary is None:
            boundary = self._host.at_boundary()
        self._advice.at_step(boundary)
        if not boundary:
            return None
        refresh = self._finish()
        due = self._due()
        if due and self.settings.lag and self.settings.row.overlaps:
            self._cancel_pending()
            self._pending = self._background.begin(self._updates)
            self._refreshed_at = self._updates
        elif due and self.settings.row.each_update:
            self._act()
        elif due:
            refresh = self.refresh()
        self._spread()
        self._updates += 1
        return refresh

    def _due(self) -> bool:
        """Whether the policy acts now: by its calendar, or as it begins in a run that another one began."""
        begins = self._refreshed_at is None and self.settings.due_at_first(self._updates)
        return (self.settings.due(self._updates) or begins) and self._refreshed_at != self._updates

    @torch.no_grad()
    def _act(self) -> None:
        """What a policy does at each update: as a refresh, but nothing is reported of it."""
        self._assign(self._measure.measure())
        self._refreshed_at = self._updates
        self._advice.refreshed()

    def _spread(self) -> None:
        """Write how far a change has come that is spread over updates."""
        spread, written = self.settings.row.spread, self._written_at
        if spread and written is not None and self._updates < written + spread:
            self._writer.write(self._table.written(self._share_at(self._updates)), {})

    def _share_at(self, updates: int) -> float:
        """How far the update after so many is from what was assigned before to what was assigned last."""
        spread, written = self.settings.row.spread, self._written_at
        if not spread or written is None:
            return 1.0
        return min(1.0, (updates - written + 1) / spread)

    @torch.no_grad()
    def refresh(self) -> Refresh:
        """Analyse the weights as they are now and write the decays, whatever the lag. Collective.

        A lagged refresh that is not written yet is dropped: it is older.
        """
        begin = time.perf_counter()
        self._cancel_pending()
        found = self._measure.measure()
        self._refreshed_at = self._updates
        return self._apply(self._updates, found, self._measure.received_by_rank(), begin)

    def _finish(self) -> Refresh | None:
        """Write the pending refresh if now is its time."""
        pending = self._pending
        if pending is None or self._updates < pending.write_at:
            return None
        begin = time.perf_counter() - pending.seconds
        self._pending = None
        found = self._background.settle(pending)
        return self._apply(pending.step, found, pending.bytes_received, begin)

    @property
    def _background(self) -> LaggedMeasure:
        """The measure where a refresh is pending or lags, which settings allow for these alone."""
        assert isinstance(self._measure, LaggedMeasure)
        return self._measure

    def _cancel_pending(self) -> None:
        """Forget a pending refresh, and end its thread."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.running is not None:
            pending.running.cancel()

    def _apply(
        self, step: int, shared: Mapping[str, Measurement], received: tuple[int, ...], begin: float
    ) -> Refresh:
        """Assign and write the decays for what was found.

        Args:
            step: updates finished before the weights were taken.
            shared: what the owners found, by part.
            received: bytes by rank.
            begin: the time when the refresh began, less what training went on beside it.
        """
        assigned = self._assign(shared)
        self._found = step, shared
        self._advice.refreshed()
        modules = self._table.reports(shared, assigned)
        kept = {part: found.histogram for part, found in shared.items() if found.histogram is not None}
        return Refresh(step, self._updates, time.perf_counter() - begin, received, modules, kept)

    def _assign(self, shared: Mapping[str, Measurement]) -> dict[str, Assignment]:
        """Map what was found, keep it, and hand it to what applies it."""
        values = {name: found.value for name, found in shared.items()}
        first = self._written_at is None
        moment = Moment(values, self._table.numbers, self._table.sizes, first, self._table.weight_of)
        assigned = self.settings.assign_to(moment)
        self._table.refreshed(shared, assigned, self._share_at(self._updates - 1))
        if not first or any(own.case != KEPT for own in assigned.values()):
            self._written_at = self._updates  # where all is undefined nothing has begun
        self._write(shared)
        return assigned

    def log(self) -> dict[str, float]:
        """See :class:`alphadecay_dist.control.protocol.DecayController`: what no refresh tells.

        Returns:
            The mean decay over all tuned weights, of policies that act at each update.
        """
        return {"mean_decay": self._table.mean()} if self.settings.row.each_update else {}

    def state_dict(self) -> dict[str, str]:
        """What a resume needs, by module name: one JSON string under one fixed key.

        Collective while a lagged refresh is pending, so that with a lag all ranks must call it: it waits for
        the spectra, and the state has what was found, to be written when its time comes on any number of
        ranks.
        """
        pending = self._pending
        if pending is not None:
            self._background.settle(pending)
        state = DecayState(
            self._updates,
            self._refreshed_at,
            self.settings.as_dict(),
            pending,
            self._table.alphas,
            self._table.numbers,
            self._table.statuses,
            self._table.before if self.settings.row.spread else None,
            self._written_at,
            self._table.largest_before if self.settings.row.spread else None,
        )
        return {STATE_KEY: json.dumps(state.as_dict())}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up a state and write its decays into the groups; call it after every load of the optimizer.

        The settings of this object stay as they were constructed. A refresh that was pending in the state is
        written at the update that it was meant for, mapped by the settings of this object; it is dropped
        where these measure something else. A refresh that is pending here is dropped. After a state of
        another policy this one begins at the next update.

        Collective.

        Raises:
            UserError: the state is another model's, or none, or ranks were given different ones; the
                optimizer was loaded from groups in another order.
        """
        with self._ranks.raise_on_all_ranks():
            if not isinstance(state, Mapping) or STATE_KEY not in state:
                raise UserError(f"AlphaDecay state: has no {STATE_KEY!r}; give what state_dict() returned")
            try:
                loaded = DecayState.of(state[STATE_KEY])
            except ValueError as error:
                raise UserError(f"AlphaDecay state: {error}; give what state_dict() returned") from None
            if loaded.alphas.keys() != self._table.alphas.keys():
                odd = sorted(loaded.alphas.keys() ^ self._table.alphas.keys())
                raise UserError(
                    f"AlphaDecay state: {len(loaded.alphas)} modules saved, {len(self._table.alphas)} tuned "
                    f"here; {odd[0]!r} is in one alone: load the state of the same model, with its heads and "
                    "parts cut alike"
                )
        self._ranks.require_equal(
            "AlphaDecay state: the ranks were given different ones",
            json.dumps(loaded.as_dict(), indent=0).splitlines(),
            "load the same state on every rank",
            kind=UserError,
        )
        self._cancel_pending()
        if loaded.pending is not None and self.settings.measured_as(loaded.settings):
            self._pending = loaded.pending
        same = loaded.policy == self.settings.policy
        self._updates = loaded.step
        self._refreshed_at = loaded.refreshed_at if same else None
        self._written_at = loaded.written_at if same else None
        self._found = None
        self._table.loaded(loaded)
        self._advice.loaded()
        self._host.loaded()
        self._write()

    def begin_at(self, updates: int) -> None:
        """Begin in a run of so many updates without AlphaDecay: act before the next one, and count on.

        Args:
            updates: that the run has made.
        """
        self._cancel_pending()
        self._updates, self._refreshed_at, self._written_at, self._found = updates, None, None, None

    def _write(self, found: Mapping[str, Measurement] = MappingProxyType({})) -> None:
        """Hand each module's number to what applies it, in groups that have their names. Collective.

        Args:
            found: what was measured, by part.
        """
        if not self.settings.row.each_update or not found:  # a load may be behind: not at every update
            with self._ranks.raise_on_all_ranks():
                restored = self._groups.restore(self._host.param_groups())
            self._advice.restored(restored)
        self._writer.write(self._table.written(self._share_at(self._updates)), found)

    def _named(self, model: nn.Module, parts: Mapping[str, Sequence[int]]) -> list[Weight]:
        """The weights that the groups name; those of the default rule where the policy needs no groups."""
        if self.settings.row.moves is None:
            return tuned_weights(model, parts=parts)
        return weights_in(self._host.param_groups(), model, parts)


def _require_whole_updates(settings: Settings) -> None:
    if settings.until is not None and settings.until < 1:
        raise UserError(
            f"until: found {settings.until}, expected updates: only the trainer knows how many a run has"
        )
