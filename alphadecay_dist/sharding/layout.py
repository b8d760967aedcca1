"""Which index ranges of a tensor each rank holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Flat:
    """The range [start, stop) of the flattened tensor."""

    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements in the range."""
        return self.stop - self.start

    def within(self, other: Flat) -> Flat | None:
        """The part of this range that lies in ``other``, counted from the beginning of ``other``."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Flat(start - other.start, stop - other.start) if start < stop else None


@dataclass(frozen=True)
class Piece:
    """A part of one tensor, and who holds it.

    Attributes:
        holders: ranks of the process group; replicas hold the same piece.
        index: where in the tensor the piece lies.
    """

    holders: tuple[int, ...]
    index: Flat


class ShardSource(Protocol):
    """One tensor, as one engine stores it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self) -> list[Piece]:
        """All pieces, equal on every rank; each rank holds at most one, and they cover the tensor once."""
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


def whole(source: ShardSource) -> Block:
    """The block that is all of a tensor."""
    return Block(source.name, source.name, Flat(0, numel(source)), source.shape)


def numel(source: ShardSource) -> int:
    """Number of elements of the whole tensor."""
    return math.prod(source.shape)


def check_cover(source: ShardSource) -> None:
    """Check that the pieces of a source cover its tensor, each element in one piece.

    Raises:
        ValueError: there is a gap or an overlap, or a piece that nobody holds.
    """
    position = 0
    for piece in sorted(source.pieces(), key=lambda piece: piece.index.start):
        if piece.index.start != position or not piece.holders:
            fault = "a gap" if piece.index.start > position else "an overlap"
            fault = fault if piece.holders else "a piece without a holder"
            raise ValueError(f"{source.name}: the pieces have {fault} at element {position}")
        position = piece.index.stop
    if position != numel(source):
        raise ValueError(f"{source.name}: the pieces hold {position} of {numel(source)} elements")
