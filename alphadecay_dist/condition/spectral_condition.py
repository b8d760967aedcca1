"""SpectralCondition: when a sample is taken, and what of.

1. At the update before, hooks are set: the next forward in training leaves the inputs of the matrices, or
   their Gram matrices, in memory (:mod:`~alphadecay_dist.condition.activations`).
2. When the update's gradients are there, their shards go to the owners of the matrices, which compute
   spectra; of the weights' spectra they do the same, but for those that the policy found at this update.
3. Sums over the ranks give the inputs' stable ranks; one all-gather each shares what owners found.

Nothing of it changes what is trained: the hooks read, no random number is drawn, no gradient is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from alphadecay_dist.condition.activations import Recorder
from alphadecay_dist.condition.gradients import GradientSpectra
from alphadecay_dist.condition.matrices import Matrices
from alphadecay_dist.condition.sample import ConditionSample, WeightNumbers, matrix_condition
from alphadecay_dist.condition.stable_ranks import StableRank, stable_ranks, token_ranks
from alphadecay_dist.condition.weights import WeightSpectra
from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.options import dtype_of, require_parts
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.engines.given import unwrapped
from alphadecay_dist.engines.host import Host, host_for
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.sharding.collectives import Collectives

ACTIVATIONS = 2**30  # bytes of inputs that are kept on a rank, unless a budget is given


class SpectralCondition:
    """Samples nr(G) against st(A) for every matrix (arXiv 2512.04299). It reads, and changes nothing.

    Construct it once the model is wrapped and before its first forward in training, on all ranks together,
    and call :meth:`step` where :meth:`alphadecay_dist.AlphaDecay.step` is called.

    Args:
        model: as it is trained, or the ``DeepSpeedEngine``; torch.compile'd models are refused.
        engine: the ``DeepSpeedEngine``, where there is one.
        process_group: ranks that share the work, without an engine; the default group if there is one.
        every: updates between samples; the first is before the first update.
        which: regular expression that finds something in the names of the matrices; by default all tuned
            ones, the head and the embeddings.
        heads: number of heads: q, k and v are looked at in so many blocks of outputs too (k and v in those
            of their own heads where they have fewer), and o in so many of inputs, where these can be divided;
            0 for none.
        tokens: most tokens over all ranks whose activations are taken; None takes one micro-batch.
        memory_budget: bytes that the activations may take on a rank (1 GiB by default), and then the exchange
            of gradients.
        parts: sizes of fused weights by glob pattern, as for ``AlphaDecay``.
        decay: what is reported as each matrix's decay: an ``AlphaDecay``, or one number for all.
        dtype: the type in which weights are read, as for ``AlphaDecay``.

    Raises:
        UserError: an argument out of its range, an engine that shows no gradients, or ranks that were given
            different arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        engine: Any | None = None,
        process_group: dist.ProcessGroup | None = None,
        every: int = 500,
        which: str | None = None,
        heads: int = 0,
        tokens: int | None = None,
        memory_budget: int | None = None,
        parts: Mapping[str, Sequence[int]] | None = None,
        decay: AlphaDecay | float | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        trained = unwrapped(model, None, engine, process_group, watches=True)
        self._host: Host = host_for(*trained, watches=True)
        self._ranks = Collectives(self._host.group)
        with self._ranks.raise_on_all_ranks():
            _require_whole(every=(every, 1), heads=(heads, 0), tokens=(tokens, 1), budget=(memory_budget, 1))
            require_parts(parts)
            self._decay = _require_decay(decay)
            read_as = dtype_of(dtype)
            refusal = self._host.gradients_refusal()
            if refusal is not None:
                raise UserError(f"spectral condition: reads gradients: {refusal}")
            self._matrices = Matrices(trained.model, which, parts)
            blocks = self._matrices.blocks(heads)
            self._recorder = self._recorder_of(trained.model, tokens, memory_budget)
        weights = self._matrices.weights
        chosen = [f"every {every}, which {which}, heads {heads}, tokens {tokens}, budget {memory_budget}"]
        self._ranks.require_equal(
            "the ranks were given different settings or models",
            [*chosen, *(f"{weight.name}: shape {weight.shape}" for weight in weights)],
            "construct SpectralCondition with the same ones on every rank",
            kind=UserError,
        )
        settings = Settings(policy="monitor", memory_budget=memory_budget)
        policy = self._decay if isinstance(self._decay, AlphaDecay) else None
        self._spectra = WeightSpectra(self._host, weights, settings, read_as, policy)
        self._gradients = GradientSpectra(self._host, weights, blocks, settings)
        self._every, self._updates = every, 0
        self._arm()

    def step(self, boundary: bool | None = None) -> ConditionSample | None:
        """Take a sample if one is due, and count the update; at other micro-batches do nothing.

        Collective where a sample is due. Call it when all gradients of an update are there, once per update,
        or under DeepSpeed once per micro-batch, before ``engine.step()`` or ``optimizer.step()``.

        Args:
            boundary: whether the update comes after this micro-batch; None asks the engine, and is True
                without one.

        Returns:
            The sample, if one was due.
        """
        if boundary is not None:
            refusal = self._host.early_gradients_refusal()
            if refusal is not None:
                raise UserError(f"step(boundary={boundary}): {refusal}")
        if not (self._host.at_boundary() if boundary is None else boundary):
            return None
        sample = self._sample() if self._due else None
        self._updates += 1
        self._arm()
        return sample

    def begin_at(self, updates: int) -> None:
        """Go on in a run that has made so many updates, such as one that is resumed."""
        self._updates = updates
        self._arm()

    @property
    def _due(self) -> bool:
        return self._updates % self._every == 0

    def _arm(self) -> None:
        """Have the next update's first forward recorded, if it is to be sampled."""
        if self._due:
            self._recorder.arm()
        else:
            self._recorder.disarm()

    def _recorder_of(self, model: nn.Module, tokens: int | None, budget: int | None) -> Recorder:
        """What records this rank's part of the tokens."""
        known, ranks = self._matrices, self._ranks
        most = None if tokens is None else (tokens + ranks.world_size - 1 - ranks.rank) // ranks.world_size
        return Recorder(
            model,
            known.inputs(),
            known.widths(),
            known.embeddings,
            known.tokens,
            most,
            ACTIVATIONS if budget is None else budget,
        )

    @torch.no_grad()
    def _sample(self) -> ConditionSample:
        """One sample of everything. Collective."""
        begin = time.perf_counter()
        kept, counts = self._recorder.take()
        inputs = stable_ranks(kept, self._ranks)
        del kept  # before gradients are gathered
        sizes = {name: module.num_embeddings for name, module in self._matrices.embeddings.items()}
        tables = token_ranks(counts, sizes, self._ranks)
        inputs |= tables
        gradients = self._gradients.measure()
        found = self._spectra.measure(self._updates)
        decays = self._decays()
        matrices = {}
        for name, part in self._matrices.parts.items():
            other = self._matrices.normalised_input_of(part)
            measured = found[name]
            metrics = measured.metrics
            matrices[name] = matrix_condition(
                part,
                gradients[name],
                inputs.get(part.weight, StableRank()),
                None if other is None else inputs.get(other),
                WeightNumbers(
                    metrics.get("stable_rank"),
                    metrics.get("spectral_norm"),
                    measured.alpha,
                    decays.get(part.weight),
                ),
                tied=part.weight in self._matrices.tied,
            )
        most = max((own.tokens for own in inputs.values()), default=0)
        table = tables.get(self._matrices.tokens or "")
        seconds = time.perf_counter() - begin
        return ConditionSample(self._updates, seconds, most, table.value if table else None, matrices)

    def _decays(self) -> Mapping[str, float | None]:
        """The decay of each weight, where it is known."""
        if isinstance(self._decay, AlphaDecay):
            return {name: module.weight_decay for name, module in self._decay.modules.items()}
        return dict.fromkeys((weight.name for weight in self._matrices.weights), self._decay)


def _require_whole(**given: tuple[Any, int]) -> None:
    for name, (found, least) in given.items():
        if found is None and name in ("tokens", "budget"):
            continue
        if not isinstance(found, int) or isinstance(found, bool) or found < least:
            key = "memory_budget" if name == "budget" else name
            raise UserError(f"{key}: found {shown(found)}, expected a whole number, {least} or more")


def _require_decay(decay: Any) -> AlphaDecay | float | None:
    if decay is None or isinstance(decay, AlphaDecay):
        return decay
    if isinstance(decay, Real) and not isinstance(decay, bool):
        return float(decay)
    raise UserError(f"decay: found {shown(decay)}, expected an AlphaDecay or a number")
