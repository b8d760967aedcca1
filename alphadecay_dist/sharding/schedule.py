"""The schedule of an exchange: what every rank sends, receives and holds, and when; pure.

Planning makes it from owners and rounds, for any number of ranks. The exchange executes it and decides
nothing again; bytes and peaks are read from it.

A round goes through three phases on each rank:

    sent        what it gives is packed into one buffer, what it takes arrives in another
    arrived     the first buffer is free again; the next round may be sent now, ahead of the work on this
    worked on   one matrix after the other is put together from the second buffer, and handed out

The next round is sent ahead where every rank has room, within the budget, for all that both then take. So at
most two rounds have arrived or are on their way, in two buffers (slots) that they use in turn. Where the
budget has room for the largest of each, these buffers serve all rounds; else a round takes its own and frees
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alphadecay_dist.sharding.layout import Flat
from alphadecay_dist.sharding.ownership import Counts, Plan
from alphadecay_dist.sharding.routes import Routes, Transfer


@dataclass(frozen=True)
class Round:
    """One round, as all ranks know it.

    Attributes:
        names: the blocks that are brought to their owners, in order.
        moving: whether any rank sends anything.
        slot: of the two buffers the one that it arrives in, 0 or 1.
        ahead: whether the next round is sent before this one is worked on.
    """

    names: tuple[str, ...]
    moving: bool
    slot: int
    ahead: bool


@dataclass(frozen=True)
class RankRound:
    """One round, as one rank takes part in it.

    Attributes:
        whole: its own blocks, in the order in which they are handed out: where in its piece a block lies that
            it holds whole, None where the block is put together.
        local: what it has itself of those that are put together.
        outgoing: what it sends, owner by owner.
        incoming: what it receives, sender by sender.
    """

    whole: dict[str, Flat | None]
    local: tuple[Transfer, ...]
    outgoing: tuple[Transfer, ...]
    incoming: tuple[Transfer, ...]


@dataclass(frozen=True)
class Schedule:
    """What an exchange does, in bytes by rank.

    Attributes:
        plan: owners, rounds and the budget.
        routes: of the blocks to their owners.
        rounds: what happens in each round of the plan.
        received: from other ranks, in all rounds.
        sent: to other ranks, in all rounds.
        peak: most that is held at once: buffers, and the matrix put together last.
        packed: most that is sent in a round.
        arriving: most that arrives in a round of each slot, (2, W).
        assembled: the largest matrix that takes memory of its own at its owner.
        kept: buffers that serve all rounds, and that matrix.
    """

    plan: Plan
    routes: Routes
    rounds: tuple[Round, ...]
    received: Counts
    sent: Counts
    peak: Counts
    packed: Counts
    arriving: Counts
    assembled: Counts
    kept: Counts

    def keeps_buffers(self, rank: int) -> bool:
        """Whether a rank's buffers serve all rounds: where the budget has room for them and a matrix."""
        return bool(self.kept[rank] <= self.plan.budget)

    @property
    def allocates(self) -> bool:
        """Whether any rank takes memory anew in a round, which may fail there alone."""
        return bool((self.kept > self.plan.budget).any())

    def room(self, rank: int) -> int | None:
        """Bytes of matrices that a rank may hold while the next is put together, to stay within the budget.

        None where that is no matter: its matrices are handed out as they lie.
        """
        if not self.assembled[rank]:
            return None
        return max(self.plan.budget - int(self.kept[rank]), 0)

    def owned(self) -> list[list[str]]:
        """The blocks of each rank, in the order in which it gets them."""
        names: list[list[str]] = [[] for _ in range(self.routes.world_size)]
        for own in self.rounds:
            for name in own.names:
                names[self.plan.owners[name]].append(name)
        return names

    def rounds_of(self, rank: int) -> list[RankRound]:
        """The part that one rank has in each round; of the others' it says what concerns this one."""
        return [self._round_of(own, rank) for own in self.rounds]

    def _round_of(self, own: Round, rank: int) -> RankRound:
        owners = self.plan.owners
        ways = [way for name in own.names for way in self.routes.transfers(name, owners[name], rank)]
        # Sorting keeps the order of names, so that sender and owner pack and unpack in the same order.
        outgoing = sorted((way for way in ways if way.owner != rank), key=lambda way: way.owner)
        incoming = sorted((way for way in ways if way.sender != rank), key=lambda way: way.sender)
        return RankRound(
            {name: self.routes.whole_at(name, rank) for name in own.names if owners[name] == rank},
            tuple(way for way in ways if way.sender == way.owner),
            tuple(outgoing),
            tuple(incoming),
        )


def schedule_of(plan: Plan, routes: Routes) -> Schedule:
    """What an exchange by a plan does; the same for the same arguments."""
    size = len(plan.rounds), routes.world_size
    sent, arriving, assembled = (np.zeros(size, np.int64) for _ in range(3))  # (R, W), bytes
    for number, names in enumerate(plan.rounds):
        for name in names:
            owner = plan.owners[name]
            move = routes.move(name, owner)
            sent[number, move.senders] += move.sent
            arriving[number, owner] += move.received
            assembled[number, owner] = max(assembled[number, owner], move.assembled)

    on_its_way = sent + arriving  # (R, W), while a round is sent
    worked_on = arriving + assembled  # (R, W), while its matrices are put together
    beside = worked_on[:-1] + on_its_way[1:]  # (R - 1, W), where the next one is sent meanwhile
    ahead = np.zeros(len(plan.rounds), np.bool_)  # (R,), never of the last
    ahead[:-1] = beside.max(axis=1, initial=0) <= plan.budget
    slots: Counts = (ahead.cumsum() - ahead) % 2  # (R,), the other one after each round that is ahead
    moving = arriving.max(axis=1, initial=0) > 0  # (R,)

    packed, largest = _most(sent), _most(assembled)  # (W,)
    buffers = np.stack([_most(arriving[slots == slot]) for slot in (0, 1)])  # (2, W)
    kept = packed + buffers.sum(axis=0) + largest  # (W,), the peak where buffers serve all rounds
    freed = _most(
        np.concatenate([on_its_way, worked_on, beside[ahead[:-1]]])
    )  # (W,), and where they are freed
    return Schedule(
        plan,
        routes,
        tuple(map(Round, plan.rounds, moving.tolist(), slots.tolist(), ahead.tolist())),
        received=arriving.sum(axis=0),
        sent=sent.sum(axis=0),
        peak=np.where(kept <= plan.budget, kept, freed),
        packed=packed,
        arriving=buffers,
        assembled=largest,
        kept=kept,
    )


def _most(counts: Counts) -> Counts:
    """The most of each rank over rounds, (R, W) -> (W,)."""
    return counts.max(axis=0, initial=0)
