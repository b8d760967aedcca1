"""The only file that moves weights or spectra between ranks.

1. Each rank packs its pieces of a round's matrices, owner by owner, into one buffer.
2. One ``all_to_all_single`` a round takes every piece to the owner alone; the next round is in flight while
   the owner works on this one.
3. The owner puts the pieces of a matrix in their places, and hands the whole matrix out.
4. When all is computed, one all-gather shares the few numbers that each owner found.

A matrix that its owner holds whole already (replicated weights) crosses no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.sharding.layout import Flat, ShardSource, check_cover, numel
from alphadecay_dist.sharding.ownership import Plan


@dataclass(frozen=True)
class _Transfer:
    """One piece of one matrix on its way."""

    name: str
    index: Flat
    sender: int
    owner: int


@dataclass
class _Arrival:
    """A round in flight: its transfers in the order of the receive buffer."""

    names: tuple[str, ...]
    transfers: list[_Transfer]
    buffer: Tensor | None
    work: dist.Work | None


class Exchange:
    """Takes pieces of matrices to their owners, and the owners' numbers to everybody.

    Args:
        sources: the tensors, equal in name, shape and layout on every rank.
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
        plan: Plan,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._plan = plan
        self._dtype = dtype
        self._group = group
        self._rank = dist.get_rank(group) if group else 0
        self._world_size = dist.get_world_size(group) if group else 1
        self._device = _collective_device(group)
        self.bytes_received = 0  # by this rank, from others, since the last matrices() began
        self._check_agreement()  # before anything that could fail on this rank alone
        for source in sources:
            check_cover(source)
        self._rounds = [(names, self._transfers(names)) for names in plan.rounds]

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Whole matrices, (m, n) in ``dtype``, of those that this rank owns, in the plan's order.

        Collective: every rank must run it to the end.
        """
        self.bytes_received = 0
        pending = self._send(*self._rounds[0]) if self._rounds else None
        for following in [*self._rounds[1:], None]:
            assert pending is not None
            if pending.work is not None:
                pending.work.wait()
            arrived, pending = pending, self._send(*following) if following else None
            yield from self._assemble(arrived)

    def share(self, values: Mapping[str, Sequence[float]], width: int) -> dict[str, tuple[float, ...]]:
        """One all-gather of what the owners found.

        Args:
            values: ``width`` numbers a matrix for the matrices that this rank owns.
            width: how many numbers each matrix has.

        Returns:
            The numbers of every matrix, bit for bit equal on every rank (they travel as fp64).
        """
        owned = [self._owned(rank) for rank in range(self._world_size)]
        longest = max(len(names) for names in owned)
        mine = torch.zeros(longest, width, dtype=torch.float64)
        for row, name in enumerate(owned[self._rank]):
            mine[row] = torch.tensor(values[name], dtype=torch.float64)
        everyone = self._all_gather(mine)  # (W, longest, width)
        return {
            name: tuple(everyone[rank, row].tolist())
            for rank, names in enumerate(owned)
            for row, name in enumerate(names)
        }

    def received_by_rank(self) -> tuple[int, ...]:
        """Bytes that each rank received from others since its last :meth:`matrices` began."""
        counts = self._all_gather(torch.tensor([float(self.bytes_received)], dtype=torch.float64))
        return tuple(int(count) for count in counts.flatten())

    def _owned(self, rank: int) -> list[str]:
        return [name for names in self._plan.rounds for name in names if self._plan.owners[name] == rank]

    def _transfers(self, names: Sequence[str]) -> list[_Transfer]:
        """The pieces of a round that must be packed, a sender each: the owner itself where it holds one."""
        transfers = []
        for name in names:
            owner = self._plan.owners[name]
            pieces = self._sources[name].pieces()
            if len(pieces) == 1 and owner in pieces[0].holders:
                continue  # whole at its owner
            for piece in pieces:
                sender = owner if owner in piece.holders else piece.holders[owner % len(piece.holders)]
                transfers.append(_Transfer(name, piece.index, sender, owner))
        return transfers

    def _send(self, names: tuple[str, ...], transfers: list[_Transfer]) -> _Arrival:
        """Start one round; all ranks decide alike whether there is anything to send."""
        if not transfers:
            return _Arrival(names, [], None, None)
        outgoing = sorted((t for t in transfers if t.sender == self._rank), key=lambda t: t.owner)
        incoming = sorted((t for t in transfers if t.owner == self._rank), key=lambda t: t.sender)
        packed = torch.empty(sum(t.index.numel for t in outgoing), dtype=self._dtype, device=self._device)
        start = 0
        for transfer in outgoing:
            packed[start : start + transfer.index.numel].copy_(self._piece(transfer))
            start += transfer.index.numel
        buffer = torch.empty(sum(t.index.numel for t in incoming), dtype=self._dtype, device=self._device)
        received = [0] * self._world_size
        sent = [0] * self._world_size
        for transfer in incoming:
            received[transfer.sender] += transfer.index.numel
        for transfer in outgoing:
            sent[transfer.owner] += transfer.index.numel
        work = dist.all_to_all_single(buffer, packed, received, sent, group=self._group, async_op=True)
        from_others = sum(received) - received[self._rank]
        self.bytes_received += from_others * self._dtype.itemsize
        return _Arrival(names, incoming, buffer, work)

    def _piece(self, transfer: _Transfer) -> Tensor:
        """This rank's part of a matrix: its whole local storage, as it holds one piece a matrix."""
        local = self._sources[transfer.name].local()
        if local is None or local.numel() != transfer.index.numel:
            found = "nothing" if local is None else f"{local.numel()} elements"
            raise RuntimeError(
                f"{transfer.name}: rank {self._rank} holds {found}, "
                f"its layout says {transfer.index.numel} elements from {transfer.index.start} on"
            )
        return local

    def _assemble(self, arrival: _Arrival) -> Iterator[tuple[str, Tensor]]:
        """Whole matrices of one round, as they lie at their owner or from the pieces that arrived."""
        places: dict[str, list[tuple[Flat, int]]] = {}
        start = 0
        for transfer in arrival.transfers:
            places.setdefault(transfer.name, []).append((transfer.index, start))
            start += transfer.index.numel
        for name in arrival.names:
            if self._plan.owners[name] != self._rank:
                continue
            source = self._sources[name]
            if name not in places:
                local = source.local()
                assert local is not None
                yield name, local.to(self._dtype).view(source.shape)
                continue
            assert arrival.buffer is not None
            whole = torch.empty(numel(source), dtype=self._dtype, device=self._device)
            for index, at in places[name]:
                whole[index.start : index.stop].copy_(arrival.buffer[at : at + index.numel])
            yield name, whole.view(source.shape)

    def _check_agreement(self) -> None:
        """Compare a hash of plan and layout across ranks, before the first byte of a weight moves."""
        layout = [(s.name, s.shape, s.pieces()) for s in self._sources.values()]
        agreed = repr((sorted(self._plan.owners.items()), self._plan.rounds, layout, self._dtype))
        digest = hashlib.sha256(agreed.encode()).digest()
        mine = torch.tensor(list(digest), dtype=torch.float64)
        everyone = self._all_gather(mine)
        if not bool((everyone == everyone[0]).all()):
            raise RuntimeError(
                "the ranks planned the gathering of weights differently: "
                "build the same model with the same sharding on every rank"
            )

    def _all_gather(self, mine: Tensor) -> Tensor:
        """(W, *shape) on the host from one equal-sized fp64 tensor a rank."""
        if self._world_size == 1:
            return mine.unsqueeze(0)
        gathered = torch.empty(self._world_size, *mine.shape, dtype=mine.dtype, device=self._device)
        dist.all_gather_into_tensor(gathered, mine.unsqueeze(0).to(self._device), group=self._group)
        return gathered.cpu()


def _collective_device(group: dist.ProcessGroup | None) -> torch.device:
    """Where tensors must lie for the group's collectives."""
    if group is not None and dist.get_backend(group) == dist.Backend.NCCL:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
