"""Whole weights on every rank: a single process, DDP, and DeepSpeed's stages 0 to 2."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.layout import Flat, Piece, ShardSource


@functools.lru_cache(maxsize=1024)
def whole_pieces(numel: int, world_size: int) -> list[Piece]:
    """One piece, everybody's; one list for all weights of a size: ranks then compare it once."""
    return [Piece(tuple(range(world_size)), Flat(0, numel))]


class ReplicatedSource:
    """A weight that every rank holds whole."""

    def __init__(self, weight: Weight, world_size: int) -> None:
        self.name = weight.name
        self.shape: tuple[int, ...] = weight.shape
        self.dtype = weight.parameter.dtype
        self._parameter = weight.parameter
        self._pieces = whole_pieces(math.prod(self.shape), world_size)

    def pieces(self) -> list[Piece]:
        """One piece, everybody's."""
        return self._pieces

    def local(self) -> Tensor:
        """The whole weight, flattened."""
        return self._parameter.detach().reshape(-1)


def replicated_sources(weights: Sequence[Weight], group: dist.ProcessGroup | None) -> list[ShardSource]:
    """Sources of weights that every rank of the group holds whole."""
    world_size = dist.get_world_size(group) if group else 1
    return [ReplicatedSource(weight, world_size) for weight in weights]
