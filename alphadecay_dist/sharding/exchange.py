"""The only file that moves weights or spectra between ranks.

1. Each rank packs its pieces of the others' matrices of a round, owner by owner, into one buffer.
2. One ``all_to_all_single`` a round takes every piece to the owner alone; the next round is in flight while
   the owner works on this one, where memory allows.
3. The owner puts the pieces of a matrix in their places, and hands the whole matrix out.
4. When all is computed, one all-gather shares the few numbers that each owner found.

A matrix that its owner holds whole already (replicated weights) crosses no network. What may fail on one rank
alone is done before the first byte moves, where all can hear of it (one number a rank), or is lived with.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.errors import warn
from alphadecay_dist.sharding.collectives import Collectives, collective_device, translate_rank_loss
from alphadecay_dist.sharding.layout import Block, Flat, Grid, ShardSource, check_cover
from alphadecay_dist.sharding.ownership import Plan
from alphadecay_dist.sharding.traffic import Traffic, traffic
from alphadecay_dist.sharding.transfers import Layout, Round, Transfer, layouts_of, rounds_of, whole_at


@dataclass(frozen=True)
class _Buffers:
    """What is allocated once for all rounds of a refresh.

    Attributes:
        packed: for what is sent; a round is off before the next one is packed.
        received: for what arrives of two rounds, of which one is worked on.
    """

    packed: Tensor
    received: tuple[Tensor, Tensor]


@dataclass
class _Arrival:
    """A round in flight, and what of it this rank sent and will have."""

    round: Round
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
        RuntimeError: the ranks planned differently, or one does not hold what its layout says.
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
        self._ranks = Collectives(group)
        self._rank, self._world_size = self._ranks.rank, self._ranks.world_size
        self.bytes_received = self.bytes_sent = 0  # from and to other ranks, since matrices() began
        self.peak_bytes = self._held = 0  # most bytes of buffers and matrices at once since then; those now
        self._shapes = {source.name: source.shape for source in sources}
        self.device = exchange_device(sources, group)  # where matrices arrive
        pieces = {source.name: source.pieces() for source in sources}
        self._layouts = layouts_of(pieces)
        self._check_agreement()  # before anything that could fail on this rank alone
        for source in {(id(self._layouts[own.name]), own.shape): own for own in sources}.values():
            check_cover(source)
        with self._ranks.raise_on_all_ranks():
            self._check_held()
        copied = frozenset(source.name for source in sources if source.dtype != dtype)
        self._expected = traffic(
            pieces, self._shapes, blocks, plan, self._world_size, dtype.itemsize, copied=copied
        )
        self._rounds = rounds_of(self._layouts, self._shapes, self._blocks, plan, self._rank)
        # The next round arrives in the other buffer where it is in flight while this one is worked on.
        flips = self._expected.ahead[:-1]
        self._slots = list(itertools.accumulate(flips, lambda slot, ahead: slot ^ ahead, initial=0))
        own = (block for block in blocks if plan.owners[block.name] == self._rank)
        copies = [block for block in own if block.source in copied or self._whole_at_owner(block) is None]
        self._copies = frozenset(block.name for block in copies)
        self._largest = max((block.index.numel for block in copies), default=0) * dtype.itemsize

    @property
    def room(self) -> int | None:
        """Bytes of matrices that may be held while the next is put together, to stay within the budget.

        None where that is no matter: this rank's matrices are handed out as they lie.
        """
        if not self._largest:
            return None
        kept = self._kept_bytes()
        return 0 if kept is None else self._plan.budget - kept - self._largest

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Whole blocks, in their shape and ``dtype``, of those that this rank owns, in the plan's order.

        Collective: every rank must run it to the end. A block that cannot be put together here, for want of
        memory, is left out with a warning.

        Raises:
            RuntimeError: a rank does not hold what its layout says, at the call and on every rank; or a rank
                died, while it runs.
        """
        self.bytes_received = self.bytes_sent = self.peak_bytes = self._held = 0
        with self._ranks.raise_on_all_ranks():
            self._check_held()
            buffers = self._allocated()
        return self._gathering(buffers)

    def _gathering(self, buffers: _Buffers | None) -> Iterator[tuple[str, Tensor]]:
        for buffer in (buffers.packed, *buffers.received) if buffers else ():
            self._hold(buffer)
        pending = self._send(0, buffers) if self._rounds else None
        for number, ahead in enumerate(self._expected.ahead):
            assert pending is not None
            self._arrive(pending, buffers)
            arrived, last = pending, number + 1 == len(self._rounds)
            pending = self._send(number + 1, buffers) if ahead else None
            yield from self._assemble(arrived)
            self._let_go(arrived.buffer, buffers)
            arrived.buffer = None
            if not last and not ahead:
                pending = self._send(number + 1, buffers)

    def lends(self, name: str) -> bool:
        """Whether a block of this rank may be handed out as it lies in the weights, which training writes."""
        return self._whole_at_owner(self._blocks[name]) is not None

    def expected_traffic(self) -> Traffic:
        """What :meth:`matrices` will move and hold on every rank."""
        return self._expected

    def received_by_rank(self) -> tuple[int, ...]:
        """Bytes that each rank receives from others in one run of :meth:`matrices`."""
        return tuple(self._expected.received.tolist())

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

    def _owned(self, rank: int) -> list[str]:
        return [name for names in self._plan.rounds for name in names if self._plan.owners[name] == rank]

    def _whole_at_owner(self, block: Block) -> Flat | None:
        """Where in its owner's piece a block lies that the owner holds whole; None where it does not."""
        layout, shape = self._layouts[block.source], self._shapes[block.source]
        return whole_at(layout, shape, block, self._plan.owners[block.name])

    def _check_held(self) -> None:
        """Check that this rank holds what the layouts say, before any other rank counts on it."""
        for name, source in self._sources.items():
            piece, local = self._layouts[name].held.get(self._rank), source.local()
            expected, found = piece.index.numel if piece else 0, 0 if local is None else local.numel()
            if found != expected:
                raise RuntimeError(
                    f"{name}: rank {self._rank} holds {found} elements, its layout says {expected} elements; "
                    "construct AlphaDecay again after the weights were sharded anew"
                )

    def _sizes(self) -> tuple[int, ...]:
        """Elements of the largest round that is sent, and that arrives in each of two buffers."""
        received = [0, 0]
        for slot, own in zip(self._slots, self._rounds, strict=True):
            received[slot] = max(received[slot], own.received)
        return max((own.sent for own in self._rounds), default=0), *received

    def _kept_bytes(self) -> int | None:
        """Bytes of buffers that serve all rounds; None where the budget has no room for them and a matrix."""
        kept = sum(self._sizes()) * self.dtype.itemsize
        return kept if kept + self._largest <= self._plan.budget else None

    def _allocated(self) -> _Buffers | None:
        if self._kept_bytes() is None:
            return None  # a round takes its own and frees them
        packed, *received = (
            torch.empty(size, dtype=self.dtype, device=self.device) for size in self._sizes()
        )
        return _Buffers(packed, (received[0], received[1]))

    def _send(self, number: int, buffers: _Buffers | None) -> _Arrival:
        """Start one round; all ranks decide alike whether there is anything to send."""
        own = self._rounds[number]
        if not own.moving:
            return _Arrival(own)
        packed = self._taken(own.sent, buffers.packed if buffers else None)
        start = 0
        for transfer in own.outgoing:
            packed[start : start + transfer.numel].copy_(self._piece(transfer))
            start += transfer.numel
        buffer = self._taken(own.received, buffers.received[self._slots[number]] if buffers else None)
        received = [0] * self._world_size
        sent = [0] * self._world_size
        for transfer in own.incoming:
            received[transfer.sender] += transfer.numel
        for transfer in own.outgoing:
            sent[transfer.owner] += transfer.numel
        with translate_rank_loss(_weights(own)):
            work = dist.all_to_all_single(buffer, packed, received, sent, group=self._group, async_op=True)
        self.bytes_received += buffer.nbytes
        self.bytes_sent += packed.nbytes
        return _Arrival(own, buffer, packed, work)

    def _arrive(self, arrival: _Arrival, buffers: _Buffers | None) -> None:
        """Wait for a round, and let go of what was sent."""
        if arrival.work is not None:
            with translate_rank_loss(_weights(arrival.round)):
                arrival.work.wait()
        self._let_go(arrival.packed, buffers)
        arrival.packed = arrival.work = None

    def _taken(self, numel: int, kept: Tensor | None) -> Tensor:
        """Room for so many elements: of a buffer that serves all rounds, or allocated for this one."""
        if kept is not None:
            return kept.narrow(0, 0, numel)
        buffer = torch.empty(numel, dtype=self.dtype, device=self.device)
        self._hold(buffer)
        return buffer

    def _let_go(self, tensor: Tensor | None, buffers: _Buffers | None) -> None:
        if tensor is not None and buffers is None:
            self._hold(tensor, -1)

    def _hold(self, tensor: Tensor, sign: int = 1) -> None:
        """Count a tensor as held, or with -1 as let go."""
        self._held += sign * tensor.nbytes
        self.peak_bytes = max(self.peak_bytes, self._held)

    def _piece(self, transfer: Transfer) -> Tensor:
        """This rank's part of a block, from its local storage, which is one piece of the tensor."""
        local = self._sources[self._blocks[transfer.name].source].local()
        assert local is not None
        return local.narrow(0, transfer.overlap.local.start, transfer.numel)

    def _assemble(self, arrival: _Arrival) -> Iterator[tuple[str, Tensor]]:
        """This rank's whole matrices of one round, as they lie here or from the pieces that arrived."""
        parts: dict[str, list[tuple[Flat | Grid, Transfer | Tensor]]] = {}
        for transfer in arrival.round.own:
            parts.setdefault(transfer.name, []).append((transfer.overlap.place, transfer))
        start = 0
        for transfer in arrival.round.incoming:
            assert arrival.buffer is not None
            values = arrival.buffer.narrow(0, start, transfer.numel)
            parts.setdefault(transfer.name, []).append((transfer.overlap.place, values))
            start += transfer.numel
        for name in arrival.round.names:
            try:
                whole = self._whole(name, parts.get(name))
            except Exception as error:  # the other ranks wait for this one's part in the next round
                warn(f"{name} could not be put together: {type(error).__name__}: {error}")
                continue
            if name in self._copies:
                self._hold(whole)
            yield name, whole
            if name in self._copies:
                self._hold(whole, -1)
            del whole  # not while the next one is put together

    def _whole(self, name: str, parts: list[tuple[Flat | Grid, Transfer | Tensor]] | None) -> Tensor:
        """One matrix: as it lies here, or from its parts."""
        block = self._blocks[name]
        if parts is None:
            lying, local = self._whole_at_owner(block), self._sources[block.source].local()
            assert lying is not None
            assert local is not None
            return local.narrow(0, lying.start, lying.numel).to(self.dtype).view(block.shape)
        whole = torch.empty(block.index.numel, dtype=self.dtype, device=self.device)
        rows = whole.view(-1, *self._shapes[block.source][1:])
        for place, values in parts:
            place.put(rows, self._piece(values) if isinstance(values, Transfer) else values)
        return whole.view(block.shape)

    def _check_agreement(self) -> None:
        """Compare plan and layout across ranks, before the first byte of a weight moves."""
        digests = {id(layout): _digest(layout) for layout in self._layouts.values()}
        layouts = [
            f"{name}: shape {self._shapes[name]}, {source.dtype}, {digests[id(self._layouts[name])]}"
            for name, source in self._sources.items()
        ]
        lines = [
            *map(str, self._blocks.values()),
            *(f"{name}: owner {rank}" for name, rank in sorted(self._plan.owners.items())),
            *(f"round {number}: {' '.join(names)}" for number, names in enumerate(self._plan.rounds)),
            f"budget {self._plan.budget}",
        ]
        travel = f"weights travel as {self.dtype} between {self.device.type}s"

        def details(place: int) -> list[str]:
            """The pieces behind a digest."""
            if not 1 <= place <= len(layouts):
                return [[travel, *layouts, *lines][place]]
            name = list(self._sources)[place - 1]
            start = f"{name}: shape {self._shapes[name]}"
            pieces = enumerate(self._layouts[name].pieces)
            held = [f"{start}, piece {n}: ranks {piece.holders} hold {piece.index}" for n, piece in pieces]
            return [*held, f"{start}, {self._sources[name].dtype}"]

        self._ranks.require_equal(
            "the ranks planned the gathering of weights differently",
            [travel, *layouts, *lines],
            "build the same model with the same sharding on every rank",
            details=details,
        )


def exchange_device(sources: Sequence[ShardSource], group: dist.ProcessGroup | None) -> torch.device:
    """Where weights are packed and put together: on GPUs if they lie there and NCCL serves. Collective."""
    ranks = Collectives(group)
    with ranks.raise_on_all_ranks():
        pieces = (source.local() for source in sources)
        on_gpu = any(piece.device.type == "cuda" for piece in pieces if piece is not None)
    on_any = any(ranks.gather(on_gpu))  # a rank may hold nothing
    return collective_device(group, "cuda" if on_any else "cpu")


def _digest(layout: Layout) -> str:
    text = "\n".join(f"{piece.holders} {piece.index}" for piece in layout.pieces)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights(own: Round) -> str:
    return f"weights of {own.label} and others"


def _all_gather(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """(W, *shape) on the host from one equal-sized fp64 tensor a rank."""
    world_size = dist.get_world_size(group) if group else 1
    if world_size == 1:
        return mine.unsqueeze(0)
    device = collective_device(group)
    everyone = torch.empty(world_size, *mine.shape, dtype=mine.dtype, device=device)
    with translate_rank_loss("spectra of the other ranks"):
        dist.all_gather_into_tensor(everyone, mine.unsqueeze(0).to(device), group=group)
        return everyone.cpu()
