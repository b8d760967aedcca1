"""What Muon adds to ``alphadecay plan``: its state, and what each update sends to owners and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alphadecay_dist.commands.forecast import Job, ranks_line
from alphadecay_dist.engines.expected_layouts import Sharding, layouts
from alphadecay_dist.optimizers.batches import Rule
from alphadecay_dist.optimizers.division import chosen, head_cuts
from alphadecay_dist.optimizers.newton_schulz import COEFFICIENTS, EPS
from alphadecay_dist.optimizers.places import TRAVEL, schedule_of_updates
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.sharding.ownership import Counts
from alphadecay_dist.sharding.returns import returned
from alphadecay_dist.sharding.schedule import Schedule
from alphadecay_dist.training.muon import MUON, muon_settings
from alphadecay_dist.training.recipe import Config

MOMENT = 4  # bytes of an element of an fp32 moment, of which Muon has one and AdamW two
ELSEWHERE = {
    "ddp": "every rank orthogonalises all of them; they cross no network",
    "zero0": "every rank orthogonalises all of them; they cross no network",
    "fsdp1": "not served: FSDP1 holds pieces of flat tensors; use fsdp2",
}
DEEPSPEEDS = "DeepSpeed's own, which is not planned here; its momentum may be bf16"


@dataclass(frozen=True)
class Step:
    """The exchange of one update.

    Attributes:
        schedule: owners and rounds of the way to owners, and bytes by rank.
        returned: bytes that each rank receives on the ways back, (W,).
        flop: of the products, by rank, (W,).
    """

    schedule: Schedule
    returned: Counts
    flop: np.ndarray


@dataclass(frozen=True)
class MuonForecast:
    """Muon on a given number of ranks.

    Attributes:
        matrices: that it steps.
        weights: their elements.
        others: elements of what AdamW steps.
        step: what moves in an update; None where nothing does, or it is not known.
        elsewhere: in words, where that is.
    """

    matrices: int
    weights: int
    others: int
    step: Step | None
    elsewhere: str

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        found: dict[str, Any] = {
            "matrices": self.matrices,
            "state_bytes": self._state(),
            "exchange": self.elsewhere or None,
        }
        if self.step is not None:
            schedule = self.step.schedule
            found["exchange"] = {
                "rounds": len(schedule.rounds),
                "owners": dict(schedule.plan.owners),
                "bytes_received": schedule.received.tolist(),
                "bytes_returned": self.step.returned.tolist(),
                "peak_bytes": schedule.peak.tolist(),
                "flop": self.step.flop.tolist(),
            }
        return found

    def text(self) -> str:
        """A few lines for people."""
        state = (
            f"state of one model: {self._state() / 2**30:.3g} GiB, of Muon {MOMENT} bytes for each of "
            f"{self.weights:,} weights, of AdamW {2 * MOMENT} for each of {self.others:,}"
        )
        if self.step is None:
            return f"{state}\nMuon in an update, {self.matrices} matrices: {self.elsewhere}"
        schedule = self.step.schedule
        owners, rounds = len(set(schedule.plan.owners.values())), len(schedule.rounds)
        return "\n".join(
            [
                state,
                f"Muon in an update: {self.matrices} matrices on {owners} ranks, {rounds} rounds",
                ranks_line("to owners, MiB", schedule.received, 2**20),
                ranks_line("and back, MiB", self.step.returned, 2**20),
                ranks_line("buffers, MiB", schedule.peak, 2**20),
                ranks_line("products, Tflop", self.step.flop, 1e12),
            ]
        )

    def _state(self) -> int:
        return MOMENT * self.weights + 2 * MOMENT * self.others


def forecast_muon(recipe: Config, job: Job, sharding: Sharding) -> MuonForecast | None:
    """What a recipe's Muon keeps and moves; None where it has another optimizer.

    Args:
        recipe: as it is trained.
        job: of that recipe.
        sharding: how its ranks hold it.

    Raises:
        UserError: patterns or heads that are not there.
    """
    if recipe.optimizer.name != MUON:
        return None
    settings = muon_settings(recipe.optimizer)
    weights = chosen(tuned_weights(job.model), settings.modules)
    cuts = head_cuts(weights, job.model, settings.heads)
    rules = {own.name: Rule(cuts.get(own.name), settings.ns_steps, COEFFICIENTS, EPS) for own in weights}
    count = sum(math.prod(own.shape) for own in weights)
    others = sum(own.numel() for own in job.model.parameters() if own.requires_grad) - count
    moves = sharding.name == "fsdp2"
    step = _step(weights, rules, job, sharding) if moves else None
    elsewhere = "" if moves else ELSEWHERE.get(sharding.name, DEEPSPEEDS)
    return MuonForecast(len(weights), count, others, step, elsewhere)


def _step(weights: Sequence[Weight], rules: dict[str, Rule], job: Job, sharding: Sharding) -> Step:
    shapes = {own.name: own.shape for own in weights}
    found = layouts(job.model, weights, sharding)
    schedule = schedule_of_updates(shapes, found, rules, sharding.world_size, job.budget)
    flop = np.zeros(sharding.world_size)
    for name, owner in schedule.plan.owners.items():
        flop[owner] += rules[name].work(shapes[name])
    return Step(schedule, returned(schedule, shapes, TRAVEL.itemsize), flop)
