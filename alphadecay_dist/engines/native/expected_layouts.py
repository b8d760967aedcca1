"""The layout of each weight under torch's engines, as their sources will show them, from the model alone.

FSDP1's padding is repeated here; ``tests/commands/test_plan_measured.py`` compares it with real runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from alphadecay_dist.engines.expected_layouts import Sharding, range_layout
from alphadecay_dist.engines.native.dtensor import mesh_layout
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.params.wrappers import named_modules
from alphadecay_dist.sharding.layout import Flat, Layout, replicated_layout

ROW_WISE = ("o_proj", "out_proj", "down_proj", "c_proj", "wo", "w2", "fc2", "dense_4h_to_h")
FSDP1_ALIGNMENT = 16  # bytes at which each parameter begins in a flat one


def whole(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, Layout]:
    """Every weight whole on every rank."""
    return {
        weight.name: replicated_layout(math.prod(weight.shape), sharding.world_size) for weight in weights
    }


def fsdp1(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, Layout]:
    """Each numbered block is wrapped for itself, and what is in none by the root."""
    found = {}
    own = {weight.parameter: weight for weight in weights}
    for unit in _units(model).values():
        places = list(_places(unit))
        shard = -(-max(place.stop for place in places) // sharding.shards)
        for parameter, place in zip(unit, places, strict=True):
            if parameter in own:
                layout = range_layout(place, shard, sharding.shards, sharding.replicas)
                found[own[parameter].name] = layout
    return found


def _units(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each parameter once, by the numbered block that it is in, in the model's order."""
    units: dict[str, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for name, module in named_modules(model).items():
        path = name.split(".")
        depth = next((depth for depth, part in enumerate(path) if part.isdigit()), -1)
        unit = ".".join(path[: depth + 1])
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                units.setdefault(unit, []).append(parameter)
                seen.add(parameter)
    return units


def _places(parameters: Sequence[nn.Parameter]) -> Iterator[Flat]:
    """Where each lies in the flat parameter of them all."""
    start = 0
    for parameter in parameters:
        aligned = FSDP1_ALIGNMENT // parameter.element_size()
        start = aligned * -(-start // aligned)
        yield Flat(start, start + parameter.numel())
        start += parameter.numel()


def fsdp2(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, Layout]:
    """Shards of dimension 0, after tensor parallelism has cut the matrix where there is any."""
    mesh = (sharding.replicas, sharding.shards, sharding.tensor_parallel)
    members = tuple(range(sharding.world_size))
    return {
        weight.name: mesh_layout(weight.shape, _placements(weight, sharding.tensor_parallel), mesh, members)
        for weight in weights
    }


def _placements(weight: Weight, tensor_parallel: int) -> tuple[Placement, ...]:
    if tensor_parallel == 1:
        return Replicate(), Shard(0), Replicate()
    if len(weight.shape) != 2:
        raise UserError(
            f"{weight.name}: found shape {weight.shape} with tensor_parallel {tensor_parallel}; of matrices "
            "alone is it known how tensor parallelism cuts them"
        )
    if weight.name.rpartition(".")[2] in ROW_WISE:
        return Replicate(), Shard(0), Shard(1)
    return Replicate(), _StridedShard(0, split_factor=tensor_parallel), Shard(0)
