"""The only file that moves weights or spectra between ranks.

1. Each rank packs its pieces of the others' matrices of a round, owner by owner, into one buffer.
2. One ``all_to_all_single`` a round takes every piece to the owner alone; the next round is in flight while
   the owner works on this one, where memory allows.
3. The owner puts the pieces of a matrix in their places, and hands the whole matrix out.
4. When all is computed, one all-gather shares the few numbers that each owner found.

A matrix that its owner holds whole already (replicated weights) crosses no network.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.sharding.layout import Block, Flat, Grid, Overlap, ShardSource, check_cover, replica_of
from alphadecay_dist.sharding.ownership import Plan
from alphadecay_dist.sharding.traffic import Traffic, traffic


@dataclass(frozen=True)
class _Transfer:
    """What one rank sends of one block.

    Attributes:
        name: the block's.
        overlap: where in the sender's piece it lies, and where in the block it goes.
        held: elements of that piece.
        sender: rank.
        owner: rank.
    """

    name: str
    overlap: Overlap
    held: int
    sender: int
    owner: int

    @property
    def numel(self) -> int:
        """Number of elements sent."""
        return self.overlap.local.numel


@dataclass
class _Arrival:
    """A round in flight.

    Attributes:
        names: blocks of the round.
        own: pieces that this rank has of its own blocks.
        transfers: what it receives, in the order of the buffer.
    """

    names: tuple[str, ...]
    own: list[_Transfer]
    transfers: list[_Transfer] = field(default_factory=list)
    buffer: Tensor | None = None
    packed: Tensor | None = None
    work: dist.Work | None = None


class Exchange:
    """Takes pieces of matrices to their owners, and the owners' numbers to everybody.

    Args:
        sources: the tensors, equal in name, shape and layout on every rank.
        blocks: the matrices in them that have owners.
        plan: owners and rounds, equal on every rank.
        dtype: the type that weights travel in and are analysed in.
        group: the process group whose ranks the pieces name; None without one (a single process).

    Raises:
        ValueError: the pieces of a source do not cover it.
        RuntimeError: the ranks planned differently.
    """

    def __init__(
        self,
        sources: Sequence[ShardSource],
        blocks: Sequence[Block],
        plan: Plan,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._blocks = {block.name: block for block in blocks}
        self._plan = plan
        self.dtype = dtype
        self._group = group
        self._rank = dist.get_rank(group) if group else 0
        self._world_size = dist.get_world_size(group) if group else 1
        self.device = collective_device(group)  # where collectives want their tensors
        self.bytes_received = self.bytes_sent = 0  # from and to other ranks, since matrices() began
        self.peak_bytes = self._held = 0  # most bytes of buffers and matrices at once since then; those now
        self._check_agreement()  # before anything that could fail on this rank alone
        for source in sources:
            check_cover(source)
        self._rounds = [(names, self._transfers(names)) for names in plan.rounds]
        self._ahead = self.foretold().ahead

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Whole blocks, in their shape and ``dtype``, of those that this rank owns, in the plan's order.

        Collective: every rank must run it to the end.
        """
        self.bytes_received = self.bytes_sent = self.peak_bytes = self._held = 0
        pending = self._send(*self._rounds[0]) if self._rounds else None
        for following, ahead in zip([*self._rounds[1:], None], self._ahead, strict=True):
            assert pending is not None
            self._arrive(pending)
            arrived, pending = pending, self._send(*following) if following and ahead else None
            yield from self._assemble(arrived)
            self._hold(arrived.buffer, -1)
            arrived.buffer = None
            if following and not ahead:
                pending = self._send(*following)

    def lends(self, name: str) -> bool:
        """Whether a block of this rank may be handed out as it lies in the weights, which training writes."""
        return self._whole_at_owner(self._blocks[name]) is not None

    def foretold(self) -> Traffic:
        """What :meth:`matrices` will move and hold on every rank."""
        layouts = {name: source.pieces() for name, source in self._sources.items()}
        shapes = {name: source.shape for name, source in self._sources.items()}
        blocks = list(self._blocks.values())
        return traffic(layouts, shapes, blocks, self._plan, self._world_size, self.dtype.itemsize)

    def share(
        self, values: Mapping[str, Sequence[float]], widths: Mapping[str, int]
    ) -> dict[str, tuple[float, ...]]:
        """One all-gather of what the owners found.

        Args:
            values: numbers by name for the blocks that this rank owns.
            widths: how many numbers each block has, for all blocks.

        Returns:
            The numbers of every block, bit for bit equal on every rank (they travel as fp64).
        """
        owned = [self._owned(rank) for rank in range(self._world_size)]
        longest = max(sum(widths[name] for name in names) for names in owned)
        flat = [number for name in owned[self._rank] for number in values[name]]
        mine = torch.zeros(longest, dtype=torch.float64, device="cpu")
        mine[: len(flat)] = torch.tensor(flat, dtype=torch.float64, device="cpu")
        everyone = _all_gather(mine, self._group).tolist()  # (W, longest)
        shared = {}
        for rank, names in enumerate(owned):
            numbers = iter(everyone[rank])
            shared.update({name: tuple(itertools.islice(numbers, widths[name])) for name in names})
        return shared

    def received_by_rank(self) -> tuple[int, ...]:
        """Bytes that each rank received from others since its last :meth:`matrices` began."""
        return tuple(count for (count,) in gathered([self.bytes_received], self._group))

    def _owned(self, rank: int) -> list[str]:
        return [name for names in self._plan.rounds for name in names if self._plan.owners[name] == rank]

    def _transfers(self, names: Sequence[str]) -> list[_Transfer]:
        """The pieces of a round that must be packed, a sender each: the owner itself where it holds one."""
        transfers = []
        for name in names:
            block, owner = self._blocks[name], self._plan.owners[name]
            if self._whole_at_owner(block) is not None:
                continue
            source = self._sources[block.source]
            # Served by the replica that it is in; where it holds nothing, by any one.
            replica = replica_of(source.pieces()).get(owner, owner)
            for piece in source.pieces():
                overlap = piece.index.overlap(block.index, source.shape)
                if overlap is not None:
                    sender = piece.holders[replica % len(piece.holders)]
                    transfers.append(_Transfer(name, overlap, piece.index.numel, sender, owner))
        return transfers

    def _whole_at_owner(self, block: Block) -> Flat | None:
        """Where in its owner's piece a block lies that the owner holds whole; None where it does not."""
        source, owner = self._sources[block.source], self._plan.owners[block.name]
        for piece in source.pieces():
            if owner in piece.holders:
                overlap = piece.index.overlap(block.index, source.shape)
                whole = overlap and overlap.local.numel == block.index.numel and overlap.place.in_order
                return overlap.local if overlap and whole else None
        return None

    def _send(self, names: tuple[str, ...], transfers: list[_Transfer]) -> _Arrival:
        """Start one round; all ranks decide alike whether there is anything to send."""
        moving = [t for t in transfers if t.sender != t.owner]
        own = [t for t in transfers if t.sender == t.owner == self._rank]
        if not moving:
            return _Arrival(names, own)
        outgoing = sorted((t for t in moving if t.sender == self._rank), key=lambda t: t.owner)
        incoming = sorted((t for t in moving if t.owner == self._rank), key=lambda t: t.sender)
        packed = torch.empty(sum(t.numel for t in outgoing), dtype=self.dtype, device=self.device)
        start = 0
        for transfer in outgoing:
            packed[start : start + transfer.numel].copy_(self._piece(transfer))
            start += transfer.numel
        buffer = torch.empty(sum(t.numel for t in incoming), dtype=self.dtype, device=self.device)
        received = [0] * self._world_size
        sent = [0] * self._world_size
        for transfer in incoming:
            received[transfer.sender] += transfer.numel
        for transfer in outgoing:
            sent[transfer.owner] += transfer.numel
        self._hold(packed)
        self._hold(buffer)
        work = dist.all_to_all_single(buffer, packed, received, sent, group=self._group, async_op=True)
        self.bytes_received += buffer.nbytes
        self.bytes_sent += packed.nbytes
        return _Arrival(names, own, incoming, buffer, packed, work)

    def _arrive(self, arrival: _Arrival) -> None:
        """Wait for a round, and let go of what was sent.

        Raises:
            RuntimeError: a rank died, or did not come within the process group's timeout.
        """
        try:
            if arrival.work is not None:
                arrival.work.wait()
        except RuntimeError as error:
            raise RuntimeError(
                f"weights of {arrival.names[0]} and others did not arrive: another rank died, or did not "
                f"come within the process group's timeout ({' '.join(str(error).split())[:200]}); look at "
                "its output"
            ) from None
        self._hold(arrival.packed, -1)
        arrival.packed = arrival.work = None

    def _hold(self, tensor: Tensor | None, sign: int = 1) -> None:
        """Count a tensor as held, or with -1 as let go."""
        if tensor is not None:
            self._held += sign * tensor.nbytes
            self.peak_bytes = max(self.peak_bytes, self._held)

    def _piece(self, transfer: _Transfer) -> Tensor:
        """This rank's part of a block, from its local storage, which is one piece of the tensor."""
        source = self._blocks[transfer.name].source
        local = self._sources[source].local()
        if local is None or local.numel() != transfer.held:
            found = "nothing" if local is None else f"{local.numel()} elements"
            raise RuntimeError(
                f"{source}: rank {self._rank} holds {found}, its layout says {transfer.held} elements"
            )
        return local.narrow(0, transfer.overlap.local.start, transfer.numel)

    def _assemble(self, arrival: _Arrival) -> Iterator[tuple[str, Tensor]]:
        """Whole matrices of one round, as they lie at their owner or from the pieces that arrived."""
        pieces: dict[str, list[tuple[Flat | Grid, Tensor]]] = {}
        for transfer in arrival.own:
            pieces.setdefault(transfer.name, []).append((transfer.overlap.place, self._piece(transfer)))
        start = 0
        for transfer in arrival.transfers:
            assert arrival.buffer is not None
            values = arrival.buffer.narrow(0, start, transfer.numel)
            pieces.setdefault(transfer.name, []).append((transfer.overlap.place, values))
            start += transfer.numel
        for name in arrival.names:
            if self._plan.owners[name] != self._rank:
                continue
            block = self._blocks[name]
            if name not in pieces:
                at_owner, local = self._whole_at_owner(block), self._sources[block.source].local()
                assert at_owner is not None
                assert local is not None
                part = local.narrow(0, at_owner.start, at_owner.numel)
                yield name, part.to(self.dtype).view(block.shape)
                continue
            whole = torch.empty(block.index.numel, dtype=self.dtype, device=self.device)
            rows = whole.view(-1, *self._sources[block.source].shape[1:])
            for place, values in pieces[name]:
                place.put(rows, values)
            self._hold(whole)
            yield name, whole.view(block.shape)
            self._hold(whole, -1)

    def _check_agreement(self) -> None:
        """Compare plan and layout across ranks, before the first byte of a weight moves."""
        rounds = [f"round {number}: {' '.join(names)}" for number, names in enumerate(self._plan.rounds)]
        owners = [f"{name}: owner {rank}" for name, rank in sorted(self._plan.owners.items())]
        layouts = [
            f"{source.name}: shape {source.shape}, piece {number}: ranks {piece.holders} hold {piece.index}"
            for source in self._sources.values()
            for number, piece in enumerate(source.pieces())
        ]
        plan = [f"weights travel as {self.dtype}", *layouts, *map(str, self._blocks.values()), *owners]
        difference = first_difference([*plan, *rounds], self._group)
        if difference is not None:
            raise RuntimeError(
                f"the ranks planned the gathering of weights differently: {difference}; "
                "build the same model with the same sharding on every rank"
            )


def first_difference(lines: Sequence[str], group: dist.ProcessGroup | None) -> str | None:
    """Where the ranks' lines first differ: what rank 0 has, and the first rank that has another. Collective.

    Returns:
        None where all are equal; else the same text on every rank.
    """
    whole = _short_hash("\n".join(lines))
    if len({row[0] for row in gathered([whole], group)}) == 1:
        return None
    shortest = min(row[0] for row in gathered([len(lines)], group))
    hashes = gathered([_short_hash(line) for line in lines[:shortest]], group)
    differing = (place for place, column in enumerate(zip(*hashes, strict=True)) if len(set(column)) > 1)
    place = next(differing, shortest)
    mine = (lines[place] if place < len(lines) else "nothing more").encode()[:_TEXT_BYTES]
    texts = [
        bytes(row).rstrip(b"\0").decode(errors="replace")
        for row in gathered(list(mine.ljust(_TEXT_BYTES, b"\0")), group)
    ]
    other = next(rank for rank, text in enumerate(texts) if text != texts[0])
    return f"rank 0 has {texts[0]!r}, rank {other} {texts[other]!r}"


_TEXT_BYTES = 300  # of a line that differs


def _short_hash(text: str) -> int:
    """A hash that fp64 holds exactly."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def gathered(mine: Sequence[int], group: dist.ProcessGroup | None) -> list[list[int]]:
    """What every rank gave, by rank: as many whole numbers each. Collective."""
    everyone = _all_gather(torch.tensor(mine, dtype=torch.float64, device="cpu"), group)
    return [[int(number) for number in row] for row in everyone.tolist()]


def _all_gather(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(W, *shape) on the host from one equal-sized fp64 tensor a rank."""
    world_size = dist.get_world_size(group) if group else 1
    if world_size == 1:
        return mine.unsqueeze(0)
    device = collective_device(group)
    everyone = torch.empty(world_size, *mine.shape, dtype=mine.dtype, device=device)
    dist.all_gather_into_tensor(everyone, mine.unsqueeze(0).to(device), group=group)
    return everyone.cpu()


def collective_device(group: dist.ProcessGroup | None) -> torch.device:
    """Where tensors must lie for the group's collectives."""
    if group is not None and dist.get_backend(group) == dist.Backend.NCCL:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
