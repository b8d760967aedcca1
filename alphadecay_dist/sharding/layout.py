"""Which index ranges of a tensor each rank holds.

A tensor lies in pieces: flat ranges of it (ZeRO, FSDP1) or index ranges in every dimension (DTensors). The
pieces of a tensor are its layout. A block is the part of a tensor that gets an owner.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
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

    def take(self, block: Tensor, values: Tensor) -> None:
        """Write what :meth:`put` would take for this place in a contiguous block to flat values."""
        values.copy_(block.view(-1)[self.start : self.stop])


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

    def take(self, block: Tensor, values: Tensor) -> None:
        """Write what :meth:`put` would take for this place in a block to flat values."""
        values = values.view(self.shape)
        for box in itertools.product(*map(with_offsets, self.ranges)):
            target = tuple(slice(part.start, part.stop) for part, _ in box)
            origin = tuple(slice(at, at + part.numel) for part, at in box)
            values[origin].copy_(block[target])


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


class Layout:
    """All pieces of a tensor: each rank holds at most one, and they cover the tensor once.

    Tensors that lie alike share one object, which an engine makes once. Layouts are compared as objects, not
    piece by piece: what is worked out for one serves all its tensors, of which there may be hundreds on
    thousands of ranks. Two objects for the same pieces cost time and nothing else.

    Args:
        pieces: either all are Flat, or all are Grid.

    Attributes:
        pieces: all of them, in the same order on every rank.
        held: the piece of each rank that has one.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.held = {rank: piece for piece in self.pieces for rank in piece.holders}
        self._replicas = {rank: place for piece in self.pieces for place, rank in enumerate(piece.holders)}

    def replica(self, rank: int) -> int:
        """The replica of the tensor that a rank belongs to; a rank that holds nothing may take any."""
        return self._replicas.get(rank, rank)

    @functools.cached_property
    def digest(self) -> str:
        """The same for the same pieces, on every rank."""
        text = "\n".join(f"{piece.holders} {piece.index}" for piece in self.pieces)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ShardSource(Protocol):
    """One tensor, as one engine stores it.

    Attributes:
        name: the weight's.
        shape: of the whole tensor.
        dtype: of its elements.
        layout: who holds what of it, equal on every rank.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout

    def local(self) -> Tensor | None:
        """This rank's piece, one-dimensional; None if it holds none. Read at each call: storage moves."""
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


def flat_chunks(size: int, count: int) -> list[Flat]:
    """A flattened tensor in ``count`` chunks of equal length, of which the last are shorter or empty."""
    chunk = -(-size // count)
    return [Flat(min(r * chunk, size), min((r + 1) * chunk, size)) for r in range(count)]


@functools.lru_cache(maxsize=1024)
def replicated_layout(numel: int, world_size: int) -> Layout:
    """Every rank holds the whole tensor: one piece, everybody's."""
    return Layout([Piece(tuple(range(world_size)), Flat(0, numel))])


@functools.lru_cache(maxsize=1024)
def chunked_layout(numel: int, world_size: int) -> Layout:
    """One chunk of the flattened tensor a rank; ranks past the end of a small tensor hold none."""
    chunks = flat_chunks(numel, world_size)
    return Layout(Piece((rank,), chunk) for rank, chunk in enumerate(chunks) if chunk.numel)


def check_cover(name: str, layout: Layout, shape: Sequence[int]) -> None:
    """Check that the pieces of a tensor of that shape cover it, each element in one piece.

    Raises:
        ValueError: there is a gap or an overlap, or a piece that nobody holds; it says the tensor's name.
    """
    for piece in layout.pieces:
        if not piece.holders:
            raise ValueError(f"{name}: nobody holds the piece {piece.index}")
    grids = [piece.index for piece in layout.pieces if isinstance(piece.index, Grid)]
    if not grids:
        ranges = [piece.index for piece in layout.pieces if isinstance(piece.index, Flat)]
        _check_partition(name, "element", ranges, math.prod(shape))
        return
    # A mesh cuts every dimension for itself: the pieces are all combinations of the cuts.
    cuts = [{grid.ranges[dim] for grid in grids} for dim in range(len(shape))]
    for dim, (size, own) in enumerate(zip(shape, cuts, strict=True)):
        _check_partition(name, f"dimension {dim}, index", [r for cut in own for r in cut], size)
    found, expected = len(layout.pieces), math.prod(map(len, cuts))
    if len(set(grids)) != found or found != expected:
        raise ValueError(f"{name}: found {found} pieces, expected {expected} different ones")


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
