"""What an exchange will move and hold, rank by rank, from its plan alone: pure, for any number of ranks.

It follows :class:`alphadecay_dist.sharding.exchange.Exchange` step by step; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alphadecay_dist.sharding.layout import Block, Piece, replica_of
from alphadecay_dist.sharding.ownership import STAYS, Counts, Move, Plan


@dataclass(frozen=True)
class Traffic:
    """Bytes by rank.

    Attributes:
        received: from other ranks.
        sent: to other ranks.
        peak: most that the exchange holds at once: buffers, and the matrix put together last. Where the
            budget has room, one buffer for what is sent and two for what arrives serve all rounds.
        ahead: of each round, whether the next one is sent before this one is worked on: where both fit into
            the plan's budget on every rank.
    """

    received: Counts
    sent: Counts
    peak: Counts
    ahead: tuple[bool, ...]


class Routes:
    """The way of each block to an owner, as the pieces lie.

    Args:
        layouts: the pieces of each tensor, by name; the same list for tensors that lie alike, which makes
            it fast.
        shapes: of the tensors.
        blocks: the matrices in them that have owners.
        world_size: number of ranks.
        itemsize: bytes of an element as it travels.
        copied: tensors of another type than that: of theirs a copy is made where they are whole too.
    """

    def __init__(
        self,
        layouts: Mapping[str, Sequence[Piece]],
        shapes: Mapping[str, tuple[int, ...]],
        blocks: Sequence[Block],
        world_size: int,
        itemsize: int,
        copied: Collection[str] = (),
    ) -> None:
        self._layouts, self._shapes = layouts, shapes
        self._blocks = {block.name: block for block in blocks}
        self._world_size = world_size
        self._itemsize = itemsize
        self._copied = frozenset(copied)
        self._parts: dict[tuple[int, int, int], _Part] = {}

    def move(self, name: str, owner: int) -> Move:
        """What it takes to bring a block to a rank."""
        block = self._blocks[name]
        pieces = self._layouts[block.source]
        key = (id(pieces), block.index.start, block.index.stop)
        if key not in self._parts:
            self._parts[key] = _Part(pieces, self._shapes[block.source], block, self._world_size)
        part = self._parts[key]
        if owner in part.whole_at:
            return replace(
                STAYS, assembled=self._itemsize * block.index.numel * (block.source in self._copied)
            )
        senders, sent = part.sent_to(owner)
        senders, sent = senders[senders != owner], self._itemsize * sent[senders != owner]
        return Move(int(sent.sum()), self._itemsize * block.index.numel, senders, sent)


class _Part:
    """One block, as it lies: what each rank sends of it to an owner.

    Attributes:
        whole_at: ranks that hold it whole and in order.
    """

    def __init__(
        self, pieces: Sequence[Piece], shape: tuple[int, ...], block: Block, world_size: int
    ) -> None:
        overlaps = ((piece.holders, piece.index.overlap(block.index, shape)) for piece in pieces)
        # Pieces that nobody holds are refused later, by all ranks alike.
        found = [(holders, overlap) for holders, overlap in overlaps if holders and overlap is not None]
        whole = (h for h, o in found if o.local.numel == block.index.numel and o.place.in_order)
        self.whole_at = frozenset(rank for holders in whole for rank in holders)
        self._found = [(holders, overlap.local.numel) for holders, overlap in found]
        self._replicas = replica_of(pieces)
        self._sent: dict[int, tuple[Counts, Counts]] = {}
        self._world_size = world_size

    def sent_to(self, owner: int) -> tuple[Counts, Counts]:
        """Ranks that hold of it, and how many elements they give, the owner's own among them.

        From the replica that shares the owner's coordinate.
        """
        replica = self._replicas.get(owner, owner)
        if replica not in self._sent:
            sent = np.zeros(self._world_size, np.int64)
            for holders, numel in self._found:
                sent[holders[replica % len(holders)]] += numel
            (senders,) = sent.nonzero()
            self._sent[replica] = senders, sent[senders]
        return self._sent[replica]


def traffic(
    layouts: Mapping[str, Sequence[Piece]],
    shapes: Mapping[str, tuple[int, ...]],
    blocks: Sequence[Block],
    plan: Plan,
    world_size: int,
    itemsize: int,
    copied: Collection[str] = (),
) -> Traffic:
    """Foretell an exchange by a plan; the other arguments are those of :class:`Routes`."""
    routes = Routes(layouts, shapes, blocks, world_size, itemsize, copied)
    received, sent, peak, before = (np.zeros(world_size, np.int64) for _ in range(4))
    most_sent, most_assembled, arrived = (np.zeros(world_size, np.int64) for _ in range(3))
    slots, slot = [arrived, arrived.copy()], 0
    ahead = []
    for names in plan.rounds:
        outgoing, incoming, largest = (np.zeros(world_size, np.int64) for _ in range(3))
        for name in names:
            owner = plan.owners[name]
            move = routes.move(name, owner)
            outgoing[move.senders] += move.sent
            incoming[owner] += move.received
            largest[owner] = max(largest[owner], move.assembled)
        sent += outgoing
        received += incoming
        both = before + outgoing + incoming
        ahead.append(bool(both.max() <= plan.budget))
        peak = np.maximum(peak, both if ahead[-1] else outgoing + incoming)
        before = incoming + largest
        peak = np.maximum(peak, before)
        slot ^= ahead[-1] if len(ahead) > 1 else 0
        slots[slot] = np.maximum(slots[slot], incoming)
        most_sent, most_assembled = np.maximum(most_sent, outgoing), np.maximum(most_assembled, largest)
    kept = most_sent + sum(slots) + most_assembled
    peak = np.where(kept <= plan.budget, kept, peak)
    # What was said of each round holds for the one before it.
    return Traffic(received, sent, peak, (*ahead[1:], False))
