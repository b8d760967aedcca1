"""What one rank sends, receives and keeps in each round of an exchange: pure.

Of the other ranks' transfers it knows as much as it must: at 4096 ranks all of them would fill a host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alphadecay_dist.sharding.layout import Block, Flat, Overlap, Piece, replica_of
from alphadecay_dist.sharding.ownership import Plan


@dataclass(frozen=True)
class Transfer:
    """What one rank sends of one block.

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
        """Number of elements sent."""
        return self.overlap.local.numel


@dataclass(frozen=True)
class Round:
    """One round, as one rank sees it.

    Attributes:
        names: the rank's own blocks, in the order in which they are handed out.
        own: the pieces of these that it has itself.
        outgoing: what it sends, owner by owner.
        incoming: what it receives, sender by sender.
        moving: whether any rank sends anything.
        label: a name in it, for messages.
    """

    names: tuple[str, ...]
    own: tuple[Transfer, ...]
    outgoing: tuple[Transfer, ...]
    incoming: tuple[Transfer, ...]
    moving: bool
    label: str

    @property
    def sent(self) -> int:
        """Number of elements sent."""
        return sum(transfer.numel for transfer in self.outgoing)

    @property
    def received(self) -> int:
        """Number of elements received."""
        return sum(transfer.numel for transfer in self.incoming)


class Layout:
    """The pieces of a tensor, looked up by rank.

    Attributes:
        pieces: all of them.
        held: the piece of each rank that has one.
        replicas: see :func:`replica_of`.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.held = {rank: piece for piece in pieces for rank in piece.holders}
        self.replicas = replica_of(pieces)

    def sender(self, piece: Piece, owner: int) -> int:
        """Who sends a piece: the replica that the owner is in; where it holds nothing, any one."""
        replica = self.replicas.get(owner, owner)
        return piece.holders[replica % len(piece.holders)]


def layouts_of(pieces: Mapping[str, Sequence[Piece]]) -> dict[str, Layout]:
    """A layout for each list of pieces, one and the same where the list is."""
    layouts = {id(own): Layout(own) for own in pieces.values()}
    return {name: layouts[id(own)] for name, own in pieces.items()}


def whole_at(layout: Layout, shape: Sequence[int], block: Block, rank: int) -> Flat | None:
    """Where in a rank's piece a block lies that the rank holds whole and in order; None where it does not."""
    piece = layout.held.get(rank)
    overlap = piece.index.overlap(block.index, shape) if piece else None
    if overlap is None or overlap.local.numel != block.index.numel or not overlap.place.in_order:
        return None
    return overlap.local


def rounds_of(
    layouts: Mapping[str, Layout],
    shapes: Mapping[str, tuple[int, ...]],
    blocks: Mapping[str, Block],
    plan: Plan,
    rank: int,
) -> list[Round]:
    """The rounds of a plan, as one rank sees them.

    Args:
        layouts: of each tensor, by its name.
        shapes: of the tensors.
        blocks: the matrices in them, by name.
        plan: owners and rounds.
        rank: the one that is meant.
    """
    rounds = []
    for names in plan.rounds:
        transfers: list[Transfer] = []
        moving = False
        for name in names:
            block, owner = blocks[name], plan.owners[name]
            layout, shape = layouts[block.source], shapes[block.source]
            if whole_at(layout, shape, block, owner) is not None:
                continue
            at_owner = layout.held.get(owner)
            kept = at_owner.index.overlap(block.index, shape) if at_owner else None
            moving = moving or kept is None or kept.local.numel < block.index.numel
            # One piece a rank: all senders matter to the owner alone.
            own = [layout.held[rank]] if rank in layout.held else []
            for piece in layout.pieces if owner == rank else own:
                sender = layout.sender(piece, owner)
                overlap = piece.index.overlap(block.index, shape) if rank in (owner, sender) else None
                if overlap is not None:
                    transfers.append(Transfer(name, overlap, sender, owner))
        rounds.append(_round(names, transfers, moving, plan, rank))
    return rounds


def _round(names: Sequence[str], transfers: list[Transfer], moving: bool, plan: Plan, rank: int) -> Round:
    mine = tuple(name for name in names if plan.owners[name] == rank)
    own = tuple(t for t in transfers if t.sender == t.owner == rank)
    outgoing = (t for t in transfers if t.sender == rank != t.owner)
    incoming = (t for t in transfers if t.owner == rank != t.sender)
    return Round(
        mine,
        own,
        tuple(sorted(outgoing, key=lambda t: t.owner)),
        tuple(sorted(incoming, key=lambda t: t.sender)),
        moving,
        names[0],
    )
