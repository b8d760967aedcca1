"""What lies where under each engine, from the model alone: what the sources say once a job runs.

DeepSpeed's and FSDP1's paddings are repeated here; ``tests/commands/test_plan.py`` holds them to real runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from alphadecay_dist.engines.native.dtensor import mesh_pieces
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.params.wrappers import named_modules
from alphadecay_dist.sharding.layout import Flat, Piece

MOST_RANKS = 65536
ROW_WISE = ("o_proj", "out_proj", "down_proj", "c_proj", "wo", "w2", "fc2", "dense_4h_to_h")
FSDP1_ALIGNMENT = 16  # bytes at which each parameter begins in a flat one
ZERO_ALIGNMENT = 2  # elements of which each rank's part of a flat group is a multiple, at stages 1 and 2


@dataclass(frozen=True)
class Sharding:
    """How a job holds its weights.

    Attributes:
        name: of ``SHARDINGS``.
        world_size: number of ranks.
        replicas: groups of ranks that hold the whole model each (HSDP, HYBRID_SHARD).
        tensor_parallel: ranks that divide each matrix before ``fsdp2`` does.

    Raises:
        UserError: an unknown name, or sizes that do not go together.
    """

    name: str
    world_size: int
    replicas: int = 1
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.world_size <= MOST_RANKS:
            raise UserError(f"world_size: found {self.world_size}, expected 1 to {MOST_RANKS}")
        if self.name not in SHARDINGS:
            raise UserError(f"sharding: found {self.name!r}, expected one of {', '.join(SHARDINGS)}")
        for what, found, served in (
            ("replicas", self.replicas, ("fsdp1", "fsdp2")),
            ("tensor_parallel", self.tensor_parallel, ("fsdp2",)),
        ):
            rest = self.world_size if what == "replicas" else self.world_size // self.replicas
            if found < 1 or rest % found or (found > 1 and self.name not in served):
                raise UserError(
                    f"{what}: found {found} with {self.name} on {self.world_size} ranks, expected a divisor "
                    f"of the {rest} ranks, and {' or '.join(served)}"
                )

    @property
    def keeps_fp32(self) -> bool:
        """Whether the weights are fp32 in any case, as the trainer has them on torch's engines."""
        return self.name in ("ddp", "fsdp1", "fsdp2")

    @property
    def shards(self) -> int:
        """Ranks that divide what each rank of tensor parallelism has."""
        return self.world_size // self.replicas // self.tensor_parallel


def layouts(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, list[Piece]]:
    """The pieces of each weight, by name; one list for those that lie alike.

    Args:
        model: that the weights are of, on any device, meta too.
        weights: the tuned ones.
        sharding: how the job holds them.

    Raises:
        UserError: a weight whose layout is not known.
    """
    return SHARDINGS[sharding.name](model, weights, sharding)


Layouts = Callable[[nn.Module, Sequence[Weight], Sharding], dict[str, list[Piece]]]


def _each(pieces: Callable[[int, int], list[Piece]]) -> Layouts:
    """Of an engine that lays every weight out by itself, from its size and the number of ranks."""
    return lambda model, weights, sharding: {
        weight.name: pieces(math.prod(weight.shape), sharding.world_size) for weight in weights
    }


@functools.lru_cache(maxsize=1024)
def _whole(size: int, world_size: int) -> list[Piece]:
    return [Piece(tuple(range(world_size)), Flat(0, size))]


@functools.lru_cache(maxsize=1024)
def _range(place: Flat, shard: int, shards: int, replicas: int) -> list[Piece]:
    """A range of a flat tensor of which each rank holds ``shard`` elements, in turn."""
    found = []
    for number in range(place.start // shard, min(-(-place.stop // shard), shards)):
        part = Flat(number * shard, (number + 1) * shard).within(place)
        if part is not None:
            found.append(Piece(tuple(replica * shards + number for replica in range(replicas)), part))
    return found


def _stage_3(size: int, world_size: int) -> list[Piece]:
    return _range(Flat(0, size), -(-size // world_size), world_size, 1)


def _masters(size: int, world_size: int) -> list[Piece]:
    """Of the flat fp32 group that is a weight's own at stages 1 and 2."""
    return _range(Flat(0, size), ZERO_ALIGNMENT * -(-size // (ZERO_ALIGNMENT * world_size)), world_size, 1)


def _fsdp1(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, list[Piece]]:
    """Each numbered block is wrapped for itself, and what is in none by the root."""
    found = {}
    own = {id(weight.parameter): weight for weight in weights}
    for unit in _units(model).values():
        places = list(_places(unit))
        shard = -(-max(place.stop for place in places) // sharding.shards)
        for parameter, place in zip(unit, places, strict=True):
            if id(parameter) in own:
                pieces = _range(place, shard, sharding.shards, sharding.replicas)
                found[own[id(parameter)].name] = pieces
    return found


def _units(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each parameter once, by the numbered block that it is in, in the model's order."""
    units: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, module in named_modules(model).items():
        path = name.split(".")
        depth = next((depth for depth, part in enumerate(path) if part.isdigit()), -1)
        unit = ".".join(path[: depth + 1])
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                units.setdefault(unit, []).append(parameter)
                seen.add(id(parameter))
    return units


def _places(parameters: Sequence[nn.Parameter]) -> Iterator[Flat]:
    """Where each lies in the flat parameter of them all."""
    start = 0
    for parameter in parameters:
        aligned = FSDP1_ALIGNMENT // parameter.element_size()
        start = aligned * -(-start // aligned)
        yield Flat(start, start + parameter.numel())
        start += parameter.numel()


def _fsdp2(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, list[Piece]]:
    """Shards of dimension 0, after tensor parallelism has cut the matrix where there is any."""
    mesh = (sharding.replicas, sharding.shards, sharding.tensor_parallel)
    members = tuple(range(sharding.world_size))
    return {
        weight.name: mesh_pieces(weight.shape, _placements(weight, sharding.tensor_parallel), mesh, members)
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


SHARDINGS: dict[str, Layouts] = {
    "ddp": _each(_whole),
    "zero0": _each(_whole),
    "zero1": _each(_whole),
    "zero2": _each(_whole),
    "zero1_masters": _each(_masters),
    "zero2_masters": _each(_masters),
    "zero3": _each(_stage_3),
    "fsdp1": _fsdp1,
    "fsdp2": _fsdp2,
}
