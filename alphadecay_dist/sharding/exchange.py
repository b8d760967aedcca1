"""The only file that moves weights, gradients or spectra between ranks: it executes a schedule.

1. Each rank packs its pieces of the others' matrices of a round, owner by owner, into one buffer.
2. One ``all_to_all_single`` a round takes every piece to the owner alone; where the schedule says so, the
   next round is in flight while the owner works on this one.
3. The owner puts the pieces of a matrix in their places, and hands the whole matrix out.
4. When all is computed, one all-gather shares the few numbers that each owner found.

A matrix that its owner holds whole already (replicated weights) crosses no network. Who sends what and when
is in :mod:`alphadecay_dist.sharding.schedule`, equal on all ranks; nothing of it is decided here. What may
fail on one rank alone is done before the first byte moves, where all can hear of it (one number a rank), or
is lived with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.errors import warn
from alphadecay_dist.sharding.buffers import Buffers, needing_memory
from alphadecay_dist.sharding.collectives import Collectives, collective_device, translate_rank_loss
from alphadecay_dist.sharding.layout import Flat, Grid, ShardSource
from alphadecay_dist.sharding.routes import Transfer
from alphadecay_dist.sharding.schedule import RankRound, Schedule


@dataclass
class _Flight:
    """A round on its way, or arrived.

    Attributes:
        own: this rank's part in it.
        label: a name in it, for messages.
        buffer: what arrives.
        packed: what was sent, until it is off.
        work: the collective, until it is waited for; None where no rank sends anything.
    """

    own: RankRound
    label: str
    buffer: Tensor | None = None
    packed: Tensor | None = None
    work: dist.Work | None = None


class Exchange:
    """Takes pieces of matrices to their owners, and the owners' numbers to everybody.

    Args:
        sources: the tensors, equal in name, shape and layout on every rank.
        schedule: of their blocks, equal on every rank; planning has seen to that.
        dtype: the type that weights travel in and are analysed in.
        device: where matrices are packed and put together.
        group: the process group whose ranks the layouts name; None without one (a single process).

    Attributes:
        bytes_received: from other ranks, since :meth:`matrices` began.
        bytes_sent: to other ranks, since then.
        peak_bytes: most bytes of buffers and matrices that were held at once, once a run is at its end.

    Raises:
        RuntimeError: a rank does not hold what its layout says.
    """

    def __init__(
        self,
        sources: Sequence[ShardSource],
        schedule: Schedule,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.schedule = schedule
        self.dtype, self.device = dtype, device
        self._sources = {source.name: source for source in sources}
        self._group = group
        self._ranks = Collectives(group)
        self._rank, self._world_size = self._ranks.rank, self._ranks.world_size
        self.bytes_received = self.bytes_sent = self.peak_bytes = 0
        with self._ranks.raise_on_all_ranks():
            self._check_held()
        self._own = schedule.rounds_of(self._rank)

    @property
    def room(self) -> int | None:
        """Bytes of matrices that may be held while the next is put together, see :meth:`Schedule.room`."""
        return self.schedule.room(self._rank)

    def received_by_rank(self) -> tuple[int, ...]:
        """Bytes that each rank receives from others in one run of :meth:`matrices`."""
        return tuple(self.schedule.received.tolist())

    def lends(self, name: str) -> bool:
        """Whether a block of this rank may be handed out as it lies in the weights, which training writes."""
        return self.schedule.routes.whole_at(name, self._rank) is not None

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Whole blocks, in their shape and ``dtype``, of those that this rank owns, in the schedule's order.

        Collective: every rank must run it to the end. A block that cannot be put together here, for want of
        memory, is left out with a warning.

        Raises:
            RuntimeError: a rank does not hold what its layout says, at the call and on every rank; or a rank
                died, while it runs.
            RunError: a rank has no memory for its part, at the call or while it runs; on every rank.
        """
        with self._ranks.raise_on_all_ranks():
            buffers = self.buffers()
        return itertools.chain.from_iterable(self.rounds(buffers))

    def buffers(self) -> Buffers:
        """Memory for one run; what may fail on this rank alone is done here, and no collective is called.

        Raises:
            RuntimeError: this rank does not hold what its layout says.
            RunError: it has no memory for them.
        """
        self._check_held()
        with needing_memory("what ranks send each other"):
            return Buffers(self.schedule, self._rank, self.dtype, self.device)

    def rounds(self, buffers: Buffers) -> Iterator[Iterator[tuple[str, Tensor]]]:
        """The same blocks, those of one round after those of another; each is run to its end before the next.

        Every rank gets as many rounds, one of which may be empty, so that all may talk to each other between
        two of them.

        Args:
            buffers: of :meth:`buffers`, which all ranks have to have.

        Raises:
            RunError: a rank has no memory for a round, while they are run through; on every rank.
        """
        self.bytes_received = self.bytes_sent = self.peak_bytes = 0
        return self._gather(buffers)

    def _gather(self, buffers: Buffers) -> Iterator[Iterator[tuple[str, Tensor]]]:
        """Round after round, see :mod:`alphadecay_dist.sharding.schedule` for the phases of one."""
        rounds = self.schedule.rounds
        flight = self._send(0, buffers) if rounds else None
        for number, current in enumerate(rounds):
            assert flight is not None
            arrived, flight = flight, None
            self._wait_for(arrived, buffers)
            if current.ahead:
                flight = self._send(number + 1, buffers)
            yield self._assemble(arrived, buffers)
            buffers.release(arrived.buffer)
            arrived.buffer = None
            if flight is None and number + 1 < len(rounds):
                flight = self._send(number + 1, buffers)
        self.peak_bytes = buffers.peak

    def _send(self, number: int, buffers: Buffers) -> _Flight:
        """Start one round."""
        current, own = self.schedule.rounds[number], self._own[number]
        flight = _Flight(own, current.names[0])
        if not current.moving:
            return flight
        sent, received = [0] * self._world_size, [0] * self._world_size  # elements, by rank
        for transfer in own.outgoing:
            sent[transfer.owner] += transfer.numel
        for transfer in own.incoming:
            received[transfer.sender] += transfer.numel
        told = self._ranks.raise_on_all_ranks() if self.schedule.allocates else nullcontext()
        with told, needing_memory(_weights(flight)):
            packed = buffers.to_send(sum(sent))  # (elements,), owner by owner
            start = 0
            for transfer in own.outgoing:
                packed[start : start + transfer.numel].copy_(self._local_part(transfer))
                start += transfer.numel
            buffer = buffers.to_receive(sum(received), current.slot)  # (elements,), sender by sender
        flight.work = swap(buffer, packed, received, sent, what=_weights(flight), group=self._group)
        flight.buffer, flight.packed = buffer, packed
        self.bytes_received += buffer.nbytes
        self.bytes_sent += packed.nbytes
        return flight

    def _wait_for(self, flight: _Flight, buffers: Buffers) -> None:
        """Wait for a round, and let go of what was sent."""
        if flight.work is not None:
            with translate_rank_loss(_weights(flight)):
                flight.work.wait()
        buffers.release(flight.packed)
        flight.packed = flight.work = None

    def _assemble(self, arrived: _Flight, buffers: Buffers) -> Iterator[tuple[str, Tensor]]:
        """This rank's whole matrices of one round, as they lie here or from the pieces that arrived."""
        parts = self._parts_of(arrived)
        for name, lying in arrived.own.whole.items():
            try:
                whole = self._lent(name, lying) if lying else self._put_together(name, parts.pop(name))
            except Exception as error:  # the other ranks wait for this one's part in the next round
                warn(f"{name} could not be put together: {type(error).__name__}: {error}")
                continue
            lent = lying is not None and _share_memory(whole, self._local(name))
            with nullcontext() if lent else buffers.holding(whole):
                yield name, whole
            del whole  # not while the next one is put together

    def _parts_of(self, arrived: _Flight) -> dict[str, list[tuple[Flat | Grid, Tensor | Transfer]]]:
        """What each matrix is put together from, and where it goes; this rank's own part is not read yet."""
        parts: dict[str, list[tuple[Flat | Grid, Tensor | Transfer]]] = {}
        for transfer in arrived.own.local:
            parts.setdefault(transfer.name, []).append((transfer.overlap.place, transfer))
        start = 0
        for transfer in arrived.own.incoming:
            assert arrived.buffer is not None
            values = arrived.buffer.narrow(0, start, transfer.numel)
            parts.setdefault(transfer.name, []).append((transfer.overlap.place, values))
            start += transfer.numel
        return parts

    def _put_together(self, name: str, parts: Sequence[tuple[Flat | Grid, Tensor | Transfer]]) -> Tensor:
        """One matrix from its parts."""
        block = self.schedule.routes.blocks[name]
        whole = torch.empty(block.index.numel, dtype=self.dtype, device=self.device)
        rows = whole.view(-1, *self._sources[block.source].shape[1:])  # as the tensor's, which a Grid cuts
        for place, values in parts:
            place.put(rows, self._local_part(values) if isinstance(values, Transfer) else values)
        return whole.view(block.shape)

    def _lent(self, name: str, lying: Flat) -> Tensor:
        """One matrix as it lies here; a copy only where it has another type."""
        values = self._local(name).narrow(0, lying.start, lying.numel)
        return values.to(self.dtype).view(self.schedule.routes.blocks[name].shape)

    def _local_part(self, transfer: Transfer) -> Tensor:
        """What this rank gives of a block, from its piece of the tensor."""
        return self._local(transfer.name).narrow(0, transfer.overlap.local.start, transfer.numel)

    def _local(self, name: str) -> Tensor:
        """This rank's piece of the tensor that a block lies in."""
        local = self._sources[self.schedule.routes.blocks[name].source].local()
        assert local is not None
        return local

    def _check_held(self) -> None:
        """Check that this rank holds what the layouts say, before any other rank counts on it."""
        for name, source in self._sources.items():
            piece, local = self.schedule.routes.layouts[name].held.get(self._rank), source.local()
            expected, found = piece.index.numel if piece else 0, 0 if local is None else local.numel()
            if found != expected:
                raise RuntimeError(
                    f"{name}: rank {self._rank} holds {found} elements, its layout says {expected} elements; "
                    "construct AlphaDecay again after the weights were sharded again"
                )

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
        owned = self.schedule.owned()
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


def swap(
    arriving: Tensor,
    packed: Tensor,
    received: Sequence[int],
    sent: Sequence[int],
    *,
    what: str,
    group: dist.ProcessGroup | None,
) -> dist.Work:
    """Start to send every rank its part of ``packed``, and to receive what is sent here. Collective.

    Args:
        arriving: (sum of ``received``,), filled rank by rank once the work is waited for.
        packed: (sum of ``sent``,), rank by rank, kept as it is until then.
        received: elements by rank.
        sent: elements by rank.
        what: is moved, for messages.
        group: the ranks.

    Raises:
        RuntimeError: a rank was lost.
    """
    with translate_rank_loss(what):
        return dist.all_to_all_single(arriving, packed, received, sent, group=group, async_op=True)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _weights(flight: _Flight) -> str:
    return f"weights of {flight.label} and others"


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
