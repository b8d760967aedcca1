"""FSDP1 (``FullyShardedDataParallel`` with ``use_orig_params=True``).

A wrapped module's parameters lie one behind the other in a flat one, of which each rank of the shard group
holds an equal range. The attributes used here are torch's own; ``tests/engines/native/test_fsdp1.py`` checks
what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.layout import Flat, Layout, Piece


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
        groups: the groups of ranks that hold the flat parameter once, see :func:`sharded_over`.
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
        self.layout = Layout(Piece(own, index) for own, part in parts if (index := part.within(place.index)))
        mine = next(own for own in groups if rank in own).index(rank)
        self._local = place.index.within(held[mine])

    def local(self) -> Tensor | None:
        """This rank's part, in full precision also while the parameter is unsharded."""
        if self._local is None:
            return None
        shard = getattr(self._flat, "_local_shard", self._flat)  # set at the first forward
        return shard.detach().narrow(0, self._local.start, self._local.numel)


def flat_places(model: nn.Module) -> dict[nn.Parameter, FlatPlace]:
    """Where every original parameter of a model lies; empty where FSDP1 wraps nothing.

    With ``use_orig_params=False`` there are none; :mod:`alphadecay_dist.params.groups` refuses that.
    """
    places = {}
    for module in FullyShardedDataParallel.fsdp_modules(model):
        handle: Any = module._handle
        if handle is None:
            continue
        flat = handle.flat_param
        offsets = [
            Flat(start, last + 1)
            for (start, last), padding in zip(
                handle._get_flat_param_offsets(), flat._is_padding_mask, strict=True
            )
            if not padding
        ]
        for parameter, index in zip(flat._params, offsets, strict=True):
            places[parameter] = FlatPlace(handle, index)
    return places


def sharded_over(name: str, place: FlatPlace, ranks: Mapping[int, int]) -> list[int]:
    """The ranks among which this rank's copy of a flat parameter is divided.

    Args:
        name: of a weight in it, for messages.
        place: a place in that flat parameter.
        ranks: rank in the process group by global rank.

    Raises:
        UserError: the process group lacks some of them.
    """
    own = ranks_of(place.handle)
    outside = sorted(set(own) - set(ranks))
    if outside:
        raise UserError(
            f"{name}: FSDP shards it over ranks {outside} too, which are not in AlphaDecay's process group "
            f"{sorted(ranks)}; give process_group=... that holds them all"
        )
    return [ranks[rank] for rank in own]


def ranks_of(handle: Any) -> list[int]:
    """Global ranks among which a handle divides its parameter; this one alone without sharding."""
    if not handle.uses_sharded_strategy:
        return [dist.get_rank()]
    return dist.get_process_group_ranks(handle.process_group)
