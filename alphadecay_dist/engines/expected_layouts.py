"""The pieces of each weight under an engine, from the model alone: what the sources say once a job runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from alphadecay_dist.engines.registry import SHARDINGS, load
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.layout import Flat, Layout, Piece

MOST_RANKS = 65536


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
        with_replicas = [name for name, layout in SHARDINGS.items() if layout.replicas]
        self._check("replicas", self.replicas, self.world_size, with_replicas)
        with_parallel = [name for name, layout in SHARDINGS.items() if layout.tensor_parallel]
        self._check("tensor_parallel", self.tensor_parallel, self.world_size // self.replicas, with_parallel)

    def _check(self, what: str, found: int, rest: int, served: Sequence[str]) -> None:
        """Refuse a number of parts that does not divide the ranks that are left, or that is not served."""
        if found < 1 or rest % found or (found > 1 and self.name not in served):
            raise UserError(
                f"{what}: found {found} with {self.name} on {self.world_size} ranks, expected a divisor "
                f"of the {rest} ranks, and {' or '.join(served)}"
            )

    @property
    def keeps_fp32(self) -> bool:
        """Whether the weights are fp32 in any case, as the trainer has them on torch's engines."""
        return SHARDINGS[self.name].keeps_fp32

    @property
    def shards(self) -> int:
        """Ranks that divide what each rank of tensor parallelism has."""
        return self.world_size // self.replicas // self.tensor_parallel


def layouts(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, Layout]:
    """The layout of each weight, by name; weights that lie alike share one.

    Args:
        model: that the weights are of, on any device, meta too.
        weights: the tuned ones.
        sharding: how the job holds them.

    Raises:
        UserError: a weight whose layout is not known.
    """
    layouts_of: Layouts = load(SHARDINGS[sharding.name].layouts)
    return layouts_of(model, weights, sharding)


Layouts = Callable[[nn.Module, Sequence[Weight], Sharding], dict[str, Layout]]


@functools.lru_cache(maxsize=1024)
def range_layout(place: Flat, shard: int, shards: int, replicas: int) -> Layout:
    """A range of a flat tensor of which each rank holds ``shard`` elements, in turn.

    Args:
        place: where in the flat tensor the weight lies.
        shard: elements of each shard.
        shards: their number, a rank each.
        replicas: groups of so many ranks that hold the same.
    """
    found = []
    for number in range(place.start // shard, min(-(-place.stop // shard), shards)):
        part = Flat(number * shard, (number + 1) * shard).within(place)
        if part is not None:
            found.append(Piece(tuple(replica * shards + number for replica in range(replicas)), part))
    return Layout(found)
