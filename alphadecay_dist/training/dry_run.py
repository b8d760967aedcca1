"""What a run would do, without doing it."""

from __future__ import annotations

import torch.distributed as dist
import yaml

from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.sharding.collectives import collective_device
from alphadecay_dist.sharding.ownership import TRIDIAGONAL, assign_owners
from alphadecay_dist.sharding.planning import analysed, costs_of
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.data.batches import TrainingData
from alphadecay_dist.training.data.tokenizer import Tokenizer
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.tasks.language import model as models


def describe(
    checked: ResolvedRun, engine: TrainEngine, ranks: Ranks, data: TrainingData, tokenizer: Tokenizer
) -> str:
    """What --dry_run prints: config, sizes, plan, first batch."""
    owned = owners(checked, ranks.world_size, collective_device(dist.group.WORLD).type)
    batches = data.next_update()
    lines = [f"  {w.name} {w.shape[0]} x {w.shape[1]}: rank {rank}" for w, rank in owned]
    first = batches[0]
    length = int((first.labels[0] >= 0).sum())
    return "\n".join(
        [
            to_yaml(checked.config),
            yaml.safe_dump({engine.name: engine.options}, sort_keys=False),
            f"weights: {models.parameter_count(checked.shapes):,}",
            f"tuned matrices and their owners on {ranks.world_size} ranks: {len(owned)}",
            *lines,
            f"first update on rank 0: {len(batches)} micro-batches of {tuple(first.input_ids.shape)}",
            f"first sequence, {length} tokens: {tokenizer.decode(first.input_ids[0, :length].tolist())!r}",
        ]
    )


def owners(checked: ResolvedRun, world_size: int, device: str) -> list[tuple[Weight, int]]:
    """The weights that the run will analyse, and the rank that will, on devices of that type."""
    settings = checked.config.decay
    weights = analysed(tuned_weights(checked.shapes), checked.shapes, settings)
    found = assign_owners(costs_of(weights, TRIDIAGONAL[device], settings.farms), world_size)
    return [(weight, found[weight.name]) for weight in weights]
