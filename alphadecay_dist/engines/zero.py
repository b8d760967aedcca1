"""DeepSpeed ZeRO, stages 0 to 3, as the controller sees it.

Stages 0 to 2 keep the module's weights whole on every rank. Stage 3 leaves each rank a flat piece of every
parameter, ``ds_tensor``, ceil(numel / W) elements long with the tail padded; ``weight.shape`` is then (0,).
These attributes are DeepSpeed's own; ``tests/engines/test_zero_contract.py`` holds them to what is written
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.engines.replicated import replicated_sources
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.inventory import Weight
from alphadecay_dist.sharding.layout import Flat, Piece, ShardSource


class ZeroShard:
    """A weight under stage 3: rank r holds elements [r c, (r + 1) c) with c = ceil(numel / W)."""

    def __init__(self, weight: Weight, world_size: int, rank: int) -> None:
        parameter: Any = weight.parameter
        if tuple(parameter.ds_shape) != weight.shape:
            raise UserError(
                f"{weight.name}: DeepSpeed holds shape {tuple(parameter.ds_shape)}, "
                f"its module says {weight.shape}"
            )
        held, chunk = parameter.ds_tensor.numel(), -(-parameter.ds_numel // world_size)
        if held != chunk:
            raise UserError(
                f"{weight.name}: this rank has {held} elements of it in memory, expected {chunk}; "
                "parameters on NVMe or quantised ones cannot be analysed: use device cpu or none"
            )
        self.name = weight.name
        self.shape: tuple[int, ...] = weight.shape
        self.dtype: torch.dtype = parameter.ds_tensor.dtype
        self._parameter = parameter
        self._ranges = _flat_ranges(parameter.ds_numel, world_size)
        self._rank = rank

    def pieces(self) -> list[Piece]:
        """One piece a rank; ranks past the end of a small tensor hold none."""
        return [Piece((rank,), part) for rank, part in enumerate(self._ranges) if part.numel]

    def local(self) -> Tensor | None:
        """This rank's piece without its padding."""
        length = self._ranges[self._rank].numel
        return self._parameter.ds_tensor.detach().narrow(0, 0, length) if length else None


class ZeroHost:
    """A ``DeepSpeedEngine`` that was given a torch optimizer over :func:`alphadecay_dist.param_groups`."""

    def __init__(self, engine: Any) -> None:
        refuse_unservable(engine)
        self._engine = engine

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group over which ZeRO partitions."""
        return self._engine.seq_data_parallel_group

    def param_groups(self) -> list[dict[str, Any]]:
        """The ZeRO optimizer's groups: its params are flat or gone, its order and our key stay."""
        return self._engine.optimizer.param_groups

    def at_boundary(self) -> bool:
        """Whether the next ``engine.step()`` updates the weights."""
        if not self._engine.managed_gradient_accumulation():
            return True  # the caller owns the boundary: every step() is one
        return self._engine.is_gradient_accumulation_boundary()

    def sources(self, weights: Sequence[Weight]) -> list[ShardSource]:
        """Flat pieces at stage 3, whole weights below."""
        if self._engine.zero_optimization_stage() < 3:
            return replicated_sources(weights, self.group)
        world_size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        return [ZeroShard(weight, world_size, rank) for weight in weights]


def refuse_unservable(engine: Any) -> None:
    """Refuse DeepSpeed's optimizers that forward nothing but the learning rate to the weights' update.

    Raises:
        UserError: SuperOffload or ZenFlow is on; they would ignore every weight decay written.
    """
    if engine.super_offload():
        raise UserError("SuperOffload ignores a weight decay that changes: set super_offload to false")
    if engine.zenflow:
        raise UserError("ZenFlow ignores a weight decay that changes: remove zenflow from the config")


def _flat_ranges(numel: int, world_size: int) -> list[Flat]:
    """Stage 3's partition of a flattened parameter."""
    chunk = -(-numel // world_size)
    return [Flat(min(r * chunk, numel), min((r + 1) * chunk, numel)) for r in range(world_size)]
