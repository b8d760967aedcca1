"""The way back of an exchange: what owners made of whole blocks goes to all ranks that hold pieces of them.

After a round of :meth:`alphadecay_dist.sharding.exchange.Exchange.rounds`, each owner cuts what it made of
its blocks as the layouts say, and one :func:`.exchange.swap` a replica takes every piece to its holders: a
rank gets back as many elements as it gave. Replicas, who gave nothing, get theirs one after the other, so
that an owner never packs more than one copy of a round. What an owner holds itself crosses no network.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.sharding.buffers import needing_memory
from alphadecay_dist.sharding.collectives import Collectives, translate_rank_loss
from alphadecay_dist.sharding.exchange import swap
from alphadecay_dist.sharding.layout import Overlap, Piece, ShardSource
from alphadecay_dist.sharding.ownership import Counts
from alphadecay_dist.sharding.schedule import Schedule


@dataclass(frozen=True)
class _Return:
    """What goes back of one block to one rank.

    Attributes:
        name: the block's.
        overlap: where in the holder's piece it goes, and where in the block it lies.
        owner: rank.
        holder: rank, which may be the owner itself.
    """

    name: str
    overlap: Overlap
    owner: int
    holder: int

    @property
    def numel(self) -> int:
        return self.overlap.local.numel


@dataclass(frozen=True)
class _Passage:
    """One collective of a round, as this rank takes part in it; ``moving`` is equal on all ranks."""

    outgoing: tuple[_Return, ...]  # holder by holder
    incoming: tuple[_Return, ...]  # owner by owner
    own: tuple[_Return, ...]
    moving: bool


@dataclass(frozen=True)
class Room:
    """Memory for the way back of any round: what this rank sends, and what it receives, (elements,)."""

    packed: Tensor
    arriving: Tensor


class Returns:
    """Takes what owners made of their blocks back to the holders of the tensors that these lie in.

    Args:
        sources: the tensors that were exchanged; what comes back is written into what they hold.
        schedule: of the exchange.
        dtype: the type that values travel in.
        device: where they are packed.
        group: the process group whose ranks the layouts name; None in a single process.

    Attributes:
        bytes_received: from other ranks, ever since.
    """

    def __init__(
        self,
        sources: Sequence[ShardSource],
        schedule: Schedule,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._schedule = schedule
        self._dtype, self._device, self._group = dtype, device, group
        ranks = Collectives(group)
        self._rank, self._world_size = ranks.rank, ranks.world_size
        self._rounds = [self._passages(own.names) for own in schedule.rounds]
        self.bytes_received = 0

    def room(self) -> Room:
        """Memory for all rounds, for the largest of them. May fail on this rank alone; not collective.

        Raises:
            RunError: this rank has none.
        """
        moving = [passage for passages in self._rounds for passage in passages if passage.moving]
        sent = max((sum(way.numel for way in passage.outgoing) for passage in moving), default=0)
        received = max((sum(way.numel for way in passage.incoming) for passage in moving), default=0)
        with needing_memory("what owners made of their matrices"):
            return Room(self._empty(sent), self._empty(received))

    def send(self, number: int, made: Mapping[str, Tensor], room: Room) -> None:
        """Bring back what was made of one round's blocks. Collective.

        Args:
            number: of the round.
            made: in the shapes of the blocks, contiguous, for what this rank owns of the round. Where one is
                missing, its holders get what happens to lie in the buffer: the owner has to tell them.
            room: of :meth:`room`.
        """
        for passage in self._rounds[number]:
            self._pass(passage, made, room)

    def _pass(self, passage: _Passage, made: Mapping[str, Tensor], room: Room) -> None:
        for way in passage.own:
            if way.name in made:
                self._take(way, made, self._held(way))
        if not passage.moving:
            return
        sent, received = [0] * self._world_size, [0] * self._world_size  # elements, by rank
        for way in passage.outgoing:
            sent[way.holder] += way.numel
        for way in passage.incoming:
            received[way.owner] += way.numel
        packed, arriving = room.packed.narrow(0, 0, sum(sent)), room.arriving.narrow(0, 0, sum(received))
        start = 0
        for way in passage.outgoing:
            if way.name in made:
                self._take(way, made, packed[start : start + way.numel])
            start += way.numel
        what = "what owners made of their matrices"
        work = swap(arriving, packed, received, sent, what=what, group=self._group)
        with translate_rank_loss(what):
            work.wait()
        self.bytes_received += arriving.nbytes
        start = 0
        for way in passage.incoming:
            self._held(way).copy_(arriving.narrow(0, start, way.numel))
            start += way.numel

    def _take(self, way: _Return, made: Mapping[str, Tensor], values: Tensor) -> None:
        """Write what a holder gets of a block to flat values; that takes no memory, so it cannot fail."""
        source = self._sources[self._schedule.routes.blocks[way.name].source]
        rows = made[way.name].view(-1, *source.shape[1:])  # as the tensor's, which a Grid cuts
        way.overlap.place.take(rows, values)

    def _held(self, way: _Return) -> Tensor:
        """What this rank holds of the tensor where that comes back, flat."""
        local = self._sources[self._schedule.routes.blocks[way.name].source].local()
        assert local is not None
        return local.narrow(0, way.overlap.local.start, way.numel)

    def _empty(self, numel: int) -> Tensor:
        return torch.empty(numel, dtype=self._dtype, device=self._device)

    def _passages(self, names: Sequence[str]) -> list[_Passage]:
        """Of a round: one for the first holders of all pieces, one for the second ones, and so on."""
        layouts, blocks = self._schedule.routes.layouts, self._schedule.routes.blocks
        pieces = [piece for name in names for piece in layouts[blocks[name].source].pieces]
        return [self._passage(names, copy) for copy in range(max(len(piece.holders) for piece in pieces))]

    def _passage(self, names: Sequence[str], copy: int) -> _Passage:
        ways = [way for name in names for way in self._ways(name, copy)]
        others = [way for way in ways if way.owner != way.holder]
        # Sorting keeps the order of names, so that owner and holder pack and unpack in the same order.
        outgoing = sorted((w for w in others if w.owner == self._rank), key=lambda way: way.holder)
        incoming = sorted((w for w in others if w.holder == self._rank), key=lambda way: way.owner)
        own = [way for way in ways if way.owner == way.holder == self._rank]
        return _Passage(tuple(outgoing), tuple(incoming), tuple(own), bool(others))

    def _ways(self, name: str, copy: int) -> Iterable[_Return]:
        """The ways of one block to the holders of its pieces in one replica."""
        block, owner = self._schedule.routes.blocks[name], self._schedule.plan.owners[name]
        shape = self._sources[block.source].shape
        for piece in self._schedule.routes.layouts[block.source].pieces:
            overlap = piece.index.overlap(block.index, shape)
            holder = _holder(piece, copy)
            if overlap is not None and holder is not None:
                yield _Return(name, overlap, owner, holder)


def returned(schedule: Schedule, shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> Counts:
    """Bytes that each rank receives from others on all ways back of a run, (W,): pure.

    Args:
        schedule: of the exchange.
        shapes: of the tensors that its blocks lie in, by name.
        itemsize: bytes of an element as it travels.
    """
    routes = schedule.routes
    total = np.zeros(routes.world_size, np.int64)  # (W,), elements
    known: dict[Hashable, Counts] = {}  # of what lies alike
    for name, owner in schedule.plan.owners.items():
        block = routes.blocks[name]
        layout, shape = routes.layouts[block.source], shapes[block.source]
        key = layout, block.index, shape
        if key not in known:
            known[key] = np.zeros(routes.world_size, np.int64)
            for piece in layout.pieces:
                overlap = piece.index.overlap(block.index, shape)
                known[key][list(piece.holders)] += overlap.local.numel if overlap else 0
        total += known[key]
        total[owner] -= known[key][owner]
    return total * itemsize


def _holder(piece: Piece, copy: int) -> int | None:
    return piece.holders[copy] if copy < len(piece.holders) else None
