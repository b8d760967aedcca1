"""What a run would do, without doing it."""

from __future__ import annotations

import torch.distributed as dist
import yaml
from torch import nn

from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.params.groups import names_in
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.sharding.collectives import collective_device
from alphadecay_dist.sharding.ownership import TRIDIAGONAL, assign_owners
from alphadecay_dist.sharding.planning import analysed, costs_of
from alphadecay_dist.training.config import to_yaml
from alphadecay_dist.training.optimizer import groups_of, pick_apply
from alphadecay_dist.training.preflight import ResolvedRun, parameter_count
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import Config, DecayConfig
from alphadecay_dist.training.tasks.data import Loaders, TrainingData


def describe(
    checked: ResolvedRun, engine: TrainEngine, ranks: Ranks, loaders: Loaders, data: TrainingData
) -> str:
    """What --dry_run prints: config, sizes, plan, first batch."""
    return "\n".join(
        [
            to_yaml(checked.config),
            yaml.safe_dump({engine.name: engine.options}, sort_keys=False),
            f"weights: {parameter_count(checked.shapes):,}",
            line_of_groups(checked.shapes, pick_apply(checked.config, engine.premultiply_refusal())[0]),
            *_lines_of_owners(checked, ranks.world_size),
            *loaders.describe(data.next_update()),
        ]
    )


def line_of_groups(shapes: nn.Module, decay: DecayConfig) -> str:
    """How many weights the optimizer's groups of tuned matrices have, and how many the others."""
    sizes = {True: 0, False: 0}
    groups = groups_of(shapes, decay)
    for group in groups:
        sizes[bool(names_in(group))] += sum(parameter.numel() for parameter in group["params"])
    tuned = f"tuned matrices and {' and '.join(decay.follow)}" if decay.follow else "tuned matrices"
    return f"param groups: {len(groups)}; {sizes[True]:,} weights of {tuned}, {sizes[False]:,} others"


def _lines_of_owners(checked: ResolvedRun, world_size: int) -> list[str]:
    """Which rank will analyse which matrix; nothing is gathered for a policy that reads no spectra."""
    decay = checked.config.decay
    if not decay.reads_spectra:
        return [f"policy {decay.policy}: reads no spectra, so no matrix is gathered"]
    owned = owners(checked.config, checked.shapes, world_size, collective_device(dist.group.WORLD).type)
    lines = [f"  {w.name} {w.shape[0]} x {w.shape[1]}: rank {rank}" for w, rank in owned]
    return [f"tuned matrices and their owners on {world_size} ranks: {len(owned)}", *lines]


def owners(config: Config, shapes: nn.Module, world_size: int, device: str) -> list[tuple[Weight, int]]:
    """The weights that the run will analyse, and the rank that will, on devices of that type."""
    settings = config.decay
    weights = analysed(tuned_weights(shapes), shapes, settings)
    found = assign_owners(costs_of(weights, TRIDIAGONAL[device], settings.farms), world_size)
    return [(weight, found[weight.name]) for weight in weights]
