"""Which index ranges of a tensor each rank holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """The range [start, stop) of the flattened tensor, or of one dimension."""

    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements in the range."""
        return self.stop - self.start

    @property
    def in_order(self) -> bool:
        """Whether neighbours in the piece are neighbours in the tensor: always."""
        return True

    def within(self, other: Flat) -> Flat | None:
        """The part of this range that lies in ``other``, counted from the beginning of ``other``."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Flat(start - other.start, stop - other.start) if start < stop else None

    def overlap(self, block: Flat, shape: Sequence[int]) -> Overlap | None:
        """What this part of a tensor of that shape has in common with a block of it."""
        place, local = self.within(block), block.within(self)
        return Overlap(local, place) if local and place else None

    def put(self, block: Tensor, values: Tensor) -> None:
        """Write flat values to this place in a contiguous block."""
        block.view(-1)[self.start : self.stop].copy_(values)


@dataclass(frozen=True)
class Grid:
    """Index ranges in every dimension; the part is their product.

    Attributes:
        ranges: the ranges of each dimension, in the order in which the piece has them.
    """

    ranges: tuple[tuple[Flat, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the piece."""
        return tuple(sum(part.numel for part in own) for own in self.ranges)

    @property
    def numel(self) -> int:
        """Number of elements in the product."""
        return math.prod(self.shape)

    @property
    def in_order(self) -> bool:
        """Whether neighbours in the piece are neighbours in the tensor along every dimension."""
        return all(len(own) == 1 for own in self.ranges)

    def overlap(self, block: Flat, shape: Sequence[int]) -> Overlap | None:
        """What this part of a tensor of that shape has in common with a block of whole rows."""
        row = math.prod(shape[1:])
        rows = Flat(block.start // row, block.stop // row)
        kept = [(part.within(rows), rows.within(part), at) for part, at in with_offsets(self.ranges[0])]
        places = tuple(place for place, _, _ in kept if place)
        if not places:
            return None
        start = next(at + local.start for _, local, at in kept if local)
        size = sum(place.numel for place in places)
        width = math.prod(self.shape[1:])
        return Overlap(Flat(start * width, (start + size) * width), Grid((places, *self.ranges[1:])))

    def put(self, block: Tensor, values: Tensor) -> None:
        """Write flat values, in the order of the piece, to this place in a block of as many dimensions."""
        values = values.view(self.shape)
        for box in itertools.product(*map(with_offsets, self.ranges)):
            target = tuple(slice(part.start, part.stop) for part, _ in box)
            origin = tuple(slice(at, at + part.numel) for part, at in box)
            block[target].copy_(values[origin])


@dataclass(frozen=True)
class Overlap:
    """What a piece of a tensor and a block of it have in common.

    Attributes:
        local: where in the piece, flattened.
        place: where in the block.
    """

    local: Flat
    place: Flat | Grid


@dataclass(frozen=True)
class Piece:
    """A part of one tensor, and who holds it.

    Attributes:
        holders: ranks of the process group that hold it: replicas, in the same order in every piece.
        index: where in the tensor the piece lies.
    """

    holders: tuple[int, ...]
    index: Flat | Grid


class ShardSource(Protocol):
    """One tensor, as one engine stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self) -> list[Piece]:
        """All pieces, equal on every rank; each rank holds at most one, and they cover the tensor once.

        Either all are Flat, or all are Grid.
        """
        ...

    def local(self) -> Tensor | None:
        """This rank's piece, one-dimensional; None if it holds none. Fetched anew: engines move storage."""
        ...


@dataclass(frozen=True)
class Block:
    """A matrix that gets an owner: a whole tensor, or one expert of a stack.

    Attributes:
        name: its own.
        source: name of the tensor that it lies in.
        index: where in the flattened tensor.
        shape: of the block.
    """

    name: str
    source: str
    index: Flat
    shape: tuple[int, ...]


def replica_of(pieces: Sequence[Piece]) -> dict[int, int]:
    """The replica that each rank belongs to, of the ranks that hold anything."""
    return {rank: place for piece in pieces for place, rank in enumerate(piece.holders)}


def flat_chunks(size: int, count: int) -> list[Flat]:
    """A flattened tensor in ``count`` chunks of equal length, of which the last are shorter or empty."""
    chunk = -(-size // count)
    return [Flat(min(r * chunk, size), min((r + 1) * chunk, size)) for r in range(count)]


def numel(source: ShardSource) -> int:
    """Number of elements of the whole tensor."""
    return math.prod(source.shape)


def check_cover(source: ShardSource) -> None:
    """Check that the pieces of a source cover its tensor, each element in one piece.

    Raises:
        ValueError: there is a gap or an overlap, or a piece that nobody holds.
    """
    pieces = source.pieces()
    for piece in pieces:
        if not piece.holders:
            raise ValueError(f"{source.name}: nobody holds the piece {piece.index}")
    grids = [piece.index for piece in pieces if isinstance(piece.index, Grid)]
    if not grids:
        ranges = [piece.index for piece in pieces if isinstance(piece.index, Flat)]
        _check_partition(source.name, "element", ranges, numel(source))
        return
    # A mesh cuts every dimension for itself: the pieces are all combinations of the cuts.
    cuts = [{grid.ranges[dim] for grid in grids} for dim in range(len(source.shape))]
    for dim, (size, own) in enumerate(zip(source.shape, cuts, strict=True)):
        _check_partition(source.name, f"dimension {dim}, index", [r for cut in own for r in cut], size)
    expected = math.prod(map(len, cuts))
    if len(set(grids)) != len(pieces) or len(pieces) != expected:
        raise ValueError(f"{source.name}: found {len(pieces)} pieces, expected {expected} different ones")


def _check_partition(name: str, where: str, ranges: Sequence[Flat], size: int) -> None:
    position = 0
    for part in sorted(ranges, key=lambda part: (part.start, part.stop)):
        if part.start != position:
            fault = "a gap" if part.start > position else "an overlap"
            raise ValueError(f"{name}: the pieces have {fault} at {where} {position}")
        position = part.stop
    if position != size:
        raise ValueError(f"{name}: the pieces end at {where} {position}, expected {size}")


def with_offsets(ranges: Sequence[Flat]) -> list[tuple[Flat, int]]:
    """Each range, and where in the piece it begins."""
    ends = itertools.accumulate((part.numel for part in ranges), initial=0)
    return list(zip(ranges, ends, strict=False))
