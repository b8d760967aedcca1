"""The shares of a plain torch optimizer's parameters: whole ones, DTensors, or FSDP1's slices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from alphadecay_dist.engines.native.fsdp1 import FlatPlace, flat_places, ranks_of
from alphadecay_dist.engines.shares import Share
from alphadecay_dist.params.groups import names_in


def plain_shares(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, group: dist.ProcessGroup | None
) -> Iterator[Share]:
    """The shares of an optimizer's parameters that have a gradient.

    Args:
        groups: the optimizer's.
        model: tells what FSDP1 holds.
        group: the ranks that hold the weights together.
    """
    rank, world_size = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    places = flat_places(model)
    named: list[tuple[Any, str | None]] = [
        pair for own in groups for pair in itertools.zip_longest(own["params"], names_in(own))
    ]
    for number, (parameter, name) in enumerate(named):
        if parameter.grad is None:
            continue
        if isinstance(parameter, DTensor):
            gradient = local_gradient(parameter)  # before the question: all ranks sum a Partial together
            if _is_first_copy(parameter):
                yield Share(name, parameter.to_local().detach(), gradient)
        elif parameter in places:
            if _is_first_shard_group(places[parameter], group):
                yield Share(name, parameter.detach(), parameter.grad)
        elif number % world_size == rank:  # whole on every rank: each counts some
            yield Share(name, parameter.detach(), parameter.grad)


def _is_first_copy(parameter: DTensor) -> bool:
    """Whether no other rank with a lower coordinate holds the same piece."""
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return False
    pairs = zip(parameter.placements, coordinate, strict=True)
    return all(place == 0 for placement, place in pairs if isinstance(placement, Replicate))


def local_gradient(parameter: DTensor) -> Tensor:
    """This rank's piece of the gradient, cut as the parameter is, and summed where it is a Partial."""
    gradient: Any = parameter.grad
    if gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
    return gradient.to_local()


def _is_first_shard_group(place: FlatPlace, group: dist.ProcessGroup | None) -> bool:
    """Whether the ranks that divide this copy of a flat parameter are those with the first rank of all."""
    first = dist.get_process_group_ranks(group)[0] if group else 0
    return first in ranks_of(place.handle)
