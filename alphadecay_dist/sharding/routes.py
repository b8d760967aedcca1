"""The way of each block from the ranks that hold pieces of it to its owner: pure, for any number of ranks.

An owner that holds a block whole and in order takes it as it lies: nothing moves. Else every piece of the
block is sent by one of its holders, the one in the owner's own replica; what the owner holds itself crosses
no network. This is worked out once for all blocks that lie alike.

Planning asks how much each rank sends and receives (:meth:`Routes.move`), the exchange which of its elements
go where (:meth:`Routes.transfers`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alphadecay_dist.sharding.layout import Block, Flat, Layout, Overlap, Piece
from alphadecay_dist.sharding.ownership import STAYS, Counts, Move


@dataclass(frozen=True)
class Transfer:
    """What one rank gives of one block to its owner, which may be itself.

    Attributes:
        name: the block's.
        overlap: where in the sender's piece it lies, and where in the block it goes.
        sender: rank.
        owner: rank.
    """

    name: str
    overlap: Overlap
    sender: int
    owner: int

    @property
    def numel(self) -> int:
        """Number of elements given."""
        return self.overlap.local.numel


class Routes:
    """The way of each block to an owner, as the pieces lie.

    Args:
        layouts: of each tensor, by its name.
        shapes: of the tensors.
        blocks: the matrices in them that have owners.
        world_size: number of ranks.
        itemsize: bytes of an element as it travels.
        copied: tensors of another type than that: of theirs a copy is made where they are whole too.

    Attributes:
        layouts: as given.
        blocks: by name.
        world_size: as given.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        shapes: Mapping[str, tuple[int, ...]],
        blocks: Sequence[Block],
        world_size: int,
        itemsize: int,
        copied: Collection[str] = (),
    ) -> None:
        self.layouts = layouts
        self.blocks = {block.name: block for block in blocks}
        self.world_size = world_size
        self._shapes = shapes
        self._itemsize = itemsize
        self._copied = frozenset(copied)
        self._overlaps: dict[tuple[Layout, Flat], list[tuple[Piece, Overlap]]] = {}
        self._gives: dict[tuple[Layout, Flat, int], tuple[Counts, Counts]] = {}

    def whole_at(self, name: str, rank: int) -> Flat | None:
        """Where in a rank's piece a block lies that it holds whole and in order; None if it does not."""
        block = self.blocks[name]
        piece = self.layouts[block.source].held.get(rank)
        overlap = self._overlap(piece, block) if piece else None
        if overlap is None or overlap.local.numel != block.index.numel or not overlap.place.in_order:
            return None
        return overlap.local

    def move(self, name: str, owner: int) -> Move:
        """What it takes to bring a block to a rank."""
        block = self.blocks[name]
        size = self._itemsize * block.index.numel
        if self.whole_at(name, owner) is not None:
            return replace(STAYS, assembled=size if block.source in self._copied else 0)
        givers, given = self._given(block, self.layouts[block.source].replica(owner))
        others = givers != owner
        sent = self._itemsize * given[others]
        return Move(int(sent.sum()), size, givers[others], sent)

    def transfers(self, name: str, owner: int, rank: int) -> list[Transfer]:
        """What a rank gives of a block to its owner; if it is the owner, what it has and receives of it.

        Nothing where the owner holds the block whole.
        """
        if self.whole_at(name, owner) is not None:
            return []
        block = self.blocks[name]
        layout = self.layouts[block.source]
        if rank == owner:
            found = self._pieces_of(block)
        else:  # of the others' pieces it need not know
            own = layout.held.get(rank)
            overlap = self._overlap(own, block) if own else None
            found = [(own, overlap)] if own and overlap else []
        replica = layout.replica(owner)
        ways = (Transfer(name, overlap, _sender(piece, replica), owner) for piece, overlap in found)
        return [way for way in ways if rank in (way.sender, owner)]

    def _given(self, block: Block, replica: int) -> tuple[Counts, Counts]:
        """Ranks that give of a block to an owner of that replica, maybe itself, and how many elements."""
        key = self.layouts[block.source], block.index, replica
        if key not in self._gives:
            given = np.zeros(self.world_size, np.int64)  # (W,)
            for piece, overlap in self._pieces_of(block):
                given[_sender(piece, replica)] += overlap.local.numel
            (givers,) = given.nonzero()
            self._gives[key] = givers, given[givers]
        return self._gives[key]

    def _pieces_of(self, block: Block) -> list[tuple[Piece, Overlap]]:
        """The pieces that have a part in a block. Of a piece that nobody holds there is no way."""
        layout = self.layouts[block.source]
        key = layout, block.index
        if key not in self._overlaps:
            overlaps = ((piece, self._overlap(piece, block)) for piece in layout.pieces if piece.holders)
            self._overlaps[key] = [(piece, overlap) for piece, overlap in overlaps if overlap]
        return self._overlaps[key]

    def _overlap(self, piece: Piece, block: Block) -> Overlap | None:
        return piece.index.overlap(block.index, self._shapes[block.source])


def _sender(piece: Piece, replica: int) -> int:
    """Who gives a piece: its holder in that replica of the tensor."""
    return piece.holders[replica % len(piece.holders)]
