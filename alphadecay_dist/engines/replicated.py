"""Whole weights on every rank: a single process, DDP, and DeepSpeed's stages 0 to 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.inventory import Weight
from alphadecay_dist.sharding.layout import Flat, Piece, ShardSource


class ReplicatedSource:
    """A weight that every rank holds whole."""

    def __init__(self, weight: Weight, world_size: int) -> None:
        self.name = weight.name
        self.shape: tuple[int, ...] = weight.shape
        self.dtype = weight.parameter.dtype
        self._parameter = weight.parameter
        self._holders = tuple(range(world_size))

    def pieces(self) -> list[Piece]:
        """One piece, everybody's."""
        return [Piece(self._holders, Flat(0, math.prod(self.shape)))]

    def local(self) -> Tensor:
        """The whole weight, flattened."""
        return self._parameter.detach().reshape(-1)


class ReplicatedHost:
    """A plain torch optimizer over whole weights."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup | None) -> None:
        self._optimizer = optimizer
        self._group = group or (dist.group.WORLD if dist.is_initialized() else None)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The given process group, else the default one."""
        return self._group

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's own."""
        return self._optimizer.param_groups

    def at_boundary(self) -> bool:
        """Always: without an engine the caller steps the controller once an update."""
        return True

    def sources(self, weights: Sequence[Weight]) -> list[ShardSource]:
        """Every weight whole, on every rank.

        Raises:
            UserError: a weight is sharded, or is not the one that the optimizer has.
        """
        for weight in weights:
            if isinstance(weight.parameter, DTensor) or tuple(weight.parameter.shape) != weight.shape:
                raise UserError(
                    f"{weight.name} is sharded, expected a whole weight {weight.shape}; "
                    "under DeepSpeed give AlphaDecay(..., engine=engine); FSDP is not served yet"
                )
        optimized = {id(p) for group in self.param_groups() for p in group["params"]}
        for weight in weights:
            if id(weight.parameter) not in optimized:
                raise UserError(
                    f"{weight.name} is not in the optimizer, whose groups name it: "
                    "give AlphaDecay the model that the groups were built from"
                )
        return replicated_sources(weights, self._group)


def replicated_sources(weights: Sequence[Weight], group: dist.ProcessGroup | None) -> list[ShardSource]:
    """Sources of weights that every rank of the group holds whole."""
    world_size = dist.get_world_size(group) if group else 1
    return [ReplicatedSource(weight, world_size) for weight in weights]
