"""Whole weights on every rank: a single process, DDP, and DeepSpeed's stages 0 to 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.layout import ShardSource, replicated_layout


class ReplicatedSource:
    """A weight that every rank holds whole."""

    def __init__(self, weight: Weight, world_size: int) -> None:
        self.name = weight.name
        self.shape: tuple[int, ...] = weight.shape
        self.dtype = weight.parameter.dtype
        self._parameter = weight.parameter
        self.layout = replicated_layout(math.prod(self.shape), world_size)

    def local(self) -> Tensor:
        """The whole weight, flattened."""
        return self._parameter.detach().reshape(-1)


def replicated_sources(weights: Sequence[Weight], group: dist.ProcessGroup | None) -> list[ShardSource]:
    """Sources of weights that every rank of the group holds whole."""
    world_size = dist.get_world_size(group) if group else 1
    return [ReplicatedSource(weight, world_size) for weight in weights]
