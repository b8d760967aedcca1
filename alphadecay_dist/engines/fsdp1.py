"""FSDP1 (``FullyShardedDataParallel`` with ``use_orig_params=True``).

A wrapped module's parameters lie one behind the other in a flat one, of which each rank of the shard group
holds an equal range. The attributes used here are torch's own; ``tests/engines/test_fsdp1.py`` holds them to
what is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.exchange import gathered
from alphadecay_dist.sharding.layout import Flat, Piece


@dataclass(frozen=True)
class FlatPlace:
    """Where a parameter lies: in which flat parameter, and which range of it, before sharding."""

    handle: Any
    index: Flat


class FlatParameterSource:
    """A weight inside a flat parameter.

    Args:
        name: the weight's.
        shape: of the whole.
        place: where it lies.
        groups: the groups of ranks that hold the flat parameter once, see :func:`shard_groups`.
        rank: this rank.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        place: FlatPlace,
        groups: Sequence[tuple[int, ...]],
        rank: int,
    ) -> None:
        self.name = name
        self.shape = shape
        self._flat = place.handle.flat_param
        self.dtype = self._flat.dtype
        size = self._flat._sharded_size.numel()
        held = [Flat(number * size, (number + 1) * size) for number in range(len(groups[0]))]
        parts = zip(zip(*groups, strict=True), held, strict=True)  # the replicas of each shard
        self._pieces = [Piece(own, index) for own, part in parts if (index := part.within(place.index))]
        mine = next(own for own in groups if rank in own).index(rank)
        self._local = place.index.within(held[mine])

    def pieces(self) -> list[Piece]:
        """One piece a shard that has a part in it."""
        return self._pieces

    def local(self) -> Tensor | None:
        """This rank's part, in full precision also while the parameter is unsharded."""
        if self._local is None:
            return None
        shard = getattr(self._flat, "_local_shard", self._flat)  # set at the first forward
        return shard.detach().narrow(0, self._local.start, self._local.numel)


def flat_places(model: nn.Module) -> dict[int, FlatPlace]:
    """Where every original parameter of a model lies, by its id; empty where FSDP1 wraps nothing.

    Raises:
        UserError: a module is wrapped with ``use_orig_params=False``, which hides the matrices.
    """
    places = {}
    for module in FullyShardedDataParallel.fsdp_modules(model):
        handle: Any = module._handle
        if handle is None:
            continue
        flat = handle.flat_param
        if flat._params is None:
            raise UserError(
                "FSDP: found use_orig_params=False, whose optimizer cannot give a matrix its own decay; "
                "wrap the model with use_orig_params=True"
            )
        offsets = [
            Flat(start, last + 1)
            for (start, last), padding in zip(
                handle._get_flat_param_offsets(), flat._is_padding_mask, strict=True
            )
            if not padding
        ]
        for parameter, index in zip(flat._params, offsets, strict=True):
            places[id(parameter)] = FlatPlace(handle, index)
    return places


def shard_groups(place: FlatPlace, group: dist.ProcessGroup) -> list[tuple[int, ...]]:
    """The groups of ranks that hold a flat parameter once: one, or with HYBRID_SHARD several. Collective.

    Args:
        place: a place in that flat parameter.
        group: the process group whose ranks are meant.
    """
    own = [dist.get_group_rank(group, rank) for rank in _sharded_over(place.handle)]
    return sorted({tuple(ranks) for ranks in gathered(own, group)})


def _sharded_over(handle: Any) -> list[int]:
    """Global ranks among which a handle divides its parameter; this one alone without sharding."""
    if not handle.uses_sharded_strategy:
        return [dist.get_rank()]
    return dist.get_process_group_ranks(handle.process_group)
