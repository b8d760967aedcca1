"""DTensors: FSDP2 (``fully_shard``), HSDP, tensor and expert parallelism, and any mix of them on one mesh.

Each rank's index ranges follow from mesh and placements. ``_StridedShard``, with which FSDP2 marks a
dimension that tensor parallelism has cut before it, is torch's own;
``tests/engines/native/test_dtensor.py`` checks what is written here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.layout import Flat, Grid, Layout, Piece


class DTensorSource:
    """A weight that is a DTensor.

    Args:
        name: the weight's.
        parameter: the optimizer's own; a module's attribute may be the unsharded weight between forward and
            backward.
        ranks: rank in the process group by global rank.

    Raises:
        UserError: a placement or a mesh that cannot be served.
    """

    def __init__(self, name: str, parameter: DTensor, ranks: Mapping[int, int]) -> None:
        self.name = name
        self.shape = tuple(parameter.shape)
        self.dtype = parameter.dtype
        self._parameter = parameter
        mesh = parameter.device_mesh.mesh
        _check(name, parameter.placements, mesh.flatten().tolist(), ranks)
        members = tuple(ranks[rank] for rank in mesh.flatten().tolist())
        self.layout = mesh_layout(self.shape, parameter.placements, tuple(mesh.shape), members)

    def local(self) -> Tensor | None:
        """This rank's part, flattened."""
        local = self._parameter.to_local().detach()
        return local.reshape(-1) if local.numel() else None


@functools.lru_cache(maxsize=1024)
def mesh_layout(
    shape: tuple[int, ...],
    placements: tuple[Placement, ...],
    mesh_shape: tuple[int, ...],
    members: tuple[int, ...],
) -> Layout:
    """Of a tensor on a mesh: a piece a coordinate, less what is empty; replicas hold the same.

    Args:
        shape: of the whole tensor.
        placements: one a dimension of the mesh.
        mesh_shape: sizes of the mesh.
        members: ranks of the mesh, flattened.
    """
    holders: dict[Grid, list[int]] = {}
    coordinates = itertools.product(*map(range, mesh_shape))
    for rank, coordinate in zip(members, coordinates, strict=True):
        grid = _grid(shape, placements, mesh_shape, coordinate)
        if grid.numel:
            holders.setdefault(grid, []).append(rank)
    return Layout(Piece(tuple(ranks), grid) for grid, ranks in holders.items())


def _grid(
    shape: Sequence[int],
    placements: Sequence[Placement],
    mesh_shape: Sequence[int],
    coordinate: Sequence[int],
) -> Grid:
    """The index ranges of one coordinate: the placements cut what those before them left, left to right."""
    ranges = [[Flat(0, size)] for size in shape]
    for placement, size, place in zip(placements, mesh_shape, coordinate, strict=True):
        if isinstance(placement, _StridedShard):  # asked first: in torch 2.9 and before it is a Shard too
            factor, whole = int(placement.split_factor), ranges[placement.dim]
            strides = [_chunk(whole, factor, number) for number in range(factor)]
            ranges[placement.dim] = [part for own in strides for part in _chunk(own, size, place)]
        elif isinstance(placement, Shard):
            ranges[placement.dim] = _chunk(ranges[placement.dim], size, place)
    return Grid(tuple(tuple(_merged(own)) for own in ranges))


def _chunk(ranges: Sequence[Flat], count: int, place: int) -> list[Flat]:
    """One of ``count`` chunks of equal size, as by torch.chunk: the last are shorter, or empty."""
    size = -(-sum(part.numel for part in ranges) // count)
    return _slice(ranges, place * size, (place + 1) * size)


def _slice(ranges: Sequence[Flat], start: int, stop: int) -> list[Flat]:
    """Elements [start, stop) of the ranges, strung together."""
    found, position = [], 0
    for part in ranges:
        first, last = max(start - position, 0), min(stop - position, part.numel)
        if first < last:
            found.append(Flat(part.start + first, part.start + last))
        position += part.numel
    return found


def _merged(ranges: Sequence[Flat]) -> list[Flat]:
    """The same elements in the same order, neighbours joined."""
    merged: list[Flat] = []
    for part in ranges:
        if merged and merged[-1].stop == part.start:
            merged[-1] = Flat(merged[-1].start, part.stop)
        else:
            merged.append(part)
    return merged


def _check(
    name: str, placements: Sequence[Placement], members: Sequence[int], ranks: Mapping[int, int]
) -> None:
    for placement in placements:
        if not isinstance(placement, Shard | _StridedShard | Replicate):
            raise UserError(
                f"{name}: placement {placement} cannot be served, expected Shard or Replicate; "
                "a Partial sum has no value yet: redistribute it first"
            )
    if list(members) != sorted(members):
        raise UserError(
            f"{name}: its device mesh has the ranks in the order {list(members)}, expected ascending; "
            "build the mesh with init_device_mesh"
        )
    if not set(members) <= set(ranks):
        outside = sorted(set(members) - set(ranks))
        raise UserError(
            f"{name}: ranks {outside} of its device mesh are not in AlphaDecay's process group "
            f"{sorted(ranks)}; give process_group=... that holds them all"
        )
