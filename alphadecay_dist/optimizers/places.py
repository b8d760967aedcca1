"""Where updates are orthogonalised: on this rank, where they are whole, or on owner ranks.

Both take an update per matrix as this rank holds it, and leave the orthogonalised one in its place. What may
fail on one rank alone before any other waits for it is in ``prepare``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from alphadecay_dist.errors import RunError
from alphadecay_dist.optimizers.batches import Rule, orthogonalized
from alphadecay_dist.sharding.buffers import Buffers
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.layout import Block, Flat, Layout
from alphadecay_dist.sharding.ownership import default_budget, plan
from alphadecay_dist.sharding.planning import exchange_device, require_one_schedule
from alphadecay_dist.sharding.returns import Returns, Room
from alphadecay_dist.sharding.routes import Routes
from alphadecay_dist.sharding.schedule import Schedule, schedule_of

TRAVEL = torch.bfloat16  # in which torch.optim.Muon orthogonalises: nothing is lost on the way


class Place(Protocol):
    """Where updates are orthogonalised."""

    def prepare(self, values: Mapping[str, Tensor]) -> None:
        """Take updates, and the memory that it takes to move them. Not collective.

        Args:
            values: by name, for all matrices of this place: what this rank holds, flat, in bf16.
        """
        ...

    def orthogonalize(self, rules: Mapping[str, Rule]) -> None:
        """Orthogonalise in place what was given.

        Args:
            rules: by name.
        """
        ...


class OnEachRank:
    """Whole matrices: every rank orthogonalises all of them, as many at once as the budget holds.

    Args:
        shapes: of the matrices, by name.
        budget: bytes of matrices that are worked on together; None is the default.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], budget: int | None) -> None:
        self._shapes = shapes
        self._values: Mapping[str, Tensor] = {}
        nbytes = {name: shape[0] * shape[1] * TRAVEL.itemsize for name, shape in shapes.items()}
        most = default_budget(nbytes) if budget is None else budget
        self._rounds: list[list[str]] = []
        held = 0
        for name in sorted(shapes, key=lambda name: (shapes[name], name)):  # equal shapes in a row
            if not self._rounds or 4 * (held + nbytes[name]) > most:
                self._rounds.append([])
                held = 0
            self._rounds[-1].append(name)
            held += nbytes[name]

    def prepare(self, values: Mapping[str, Tensor]) -> None:
        """See :class:`Place`."""
        self._values = values

    def orthogonalize(self, rules: Mapping[str, Rule]) -> None:
        """See :class:`Place`."""
        values, self._values = self._values, {}
        for names in self._rounds:
            made = orthogonalized({name: values[name].view(self._shapes[name]) for name in names}, rules)
            for name, matrix in made.items():
                values[name].copy_(matrix.reshape(-1))


@dataclass
class UpdateSource:
    """An update as this rank holds it: a :class:`alphadecay_dist.sharding.layout.ShardSource`.

    Attributes:
        name: the matrix's.
        shape: of the whole.
        layout: as the weight's.
        values: this rank's piece, flat; empty where it holds none. Before the first step it has its size
            and device alone, not its values.
        dtype: of its elements.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    values: Tensor
    dtype: torch.dtype = TRAVEL

    def local(self) -> Tensor | None:
        """This rank's piece."""
        return self.values if self.values.numel() else None


def schedule_of_updates(
    shapes: Mapping[str, tuple[int, ...]],
    layouts: Mapping[str, Layout],
    rules: Mapping[str, Rule],
    world_size: int,
    budget: int | None,
) -> Schedule:
    """Owners and rounds of a step's updates on their way to owners: pure.

    Args:
        shapes: of the matrices, by name.
        layouts: of each.
        rules: of each, which tell how much work it is.
        world_size: number of ranks.
        budget: bytes that a rank may hold at once, a third of them for the exchange; None is the default.
    """
    blocks = [Block(name, name, Flat(0, shape[0] * shape[1]), shape) for name, shape in shapes.items()]
    costs = {name: rules[name].work(shape) for name, shape in shapes.items()}
    nbytes = {block.name: block.index.numel * TRAVEL.itemsize for block in blocks}
    routes = Routes(layouts, shapes, blocks, world_size, TRAVEL.itemsize)
    most = (default_budget(nbytes) if budget is None else budget) // 3
    return schedule_of(plan(costs, nbytes, world_size, most, shapes, routes.move), routes)


class OnOwners:
    """Matrices in pieces: each goes to one owner rank, which orthogonalises it, and back to all its holders.

    A round's matrices are worked on together at their owner, and returned before the next round is; the next
    one may be on its way meanwhile. Of the budget the exchange has a third; what owners make of a round and
    its way back take at most two: up to five quarters and three quarters of what the exchange has.

    Args:
        sources: of the updates, equal in name, shape and layout on every rank.
        rules: by name, which tell how much work each is.
        group: the ranks that hold the pieces.
        budget: bytes that a rank may hold at once; None is the default.

    Raises:
        RuntimeError: the ranks planned differently.
    """

    def __init__(
        self,
        sources: Sequence[UpdateSource],
        rules: Mapping[str, Rule],
        group: dist.ProcessGroup | None,
        budget: int | None,
    ) -> None:
        self._sources = {source.name: source for source in sources}
        device = exchange_device(sources, group)
        shapes = {own.name: own.shape for own in sources}
        layouts = {own.name: own.layout for own in sources}
        world_size = 1 if group is None else dist.get_world_size(group)
        schedule = schedule_of_updates(shapes, layouts, rules, world_size, budget)
        require_one_schedule(sources, schedule, TRAVEL, device, group)
        self._exchange = Exchange(sources, schedule, TRAVEL, device, group)
        self._returns = Returns(sources, schedule, TRAVEL, device, group)
        self._ranks = Collectives(group)
        self._owned = [list(own.whole) for own in schedule.rounds_of(self._ranks.rank)]
        self._ready: tuple[Buffers, Room] | None = None

    def prepare(self, values: Mapping[str, Tensor]) -> None:
        """See :class:`Place`."""
        for name, own in values.items():
            self._sources[name].values = own
        self._ready = self._exchange.buffers(), self._returns.room()

    def orthogonalize(self, rules: Mapping[str, Rule]) -> None:
        """See :class:`Place`. Collective.

        Raises:
            RunError: a rank could not do its part, for want of memory; on every rank.
        """
        assert self._ready is not None
        (buffers, room), self._ready = self._ready, None
        faults: list[str] = []
        for number, matrices in enumerate(self._exchange.rounds(buffers)):
            self._returns.send(number, self._made(number, matrices, rules, faults), room)
        for source in self._sources.values():
            source.values = source.values.new_empty(0)  # the next step's backward needs that memory
        with self._ranks.raise_on_all_ranks():
            if faults:
                raise RunError(f"{faults[0]}; give a smaller memory_budget, or more ranks")

    def _made(
        self,
        number: int,
        matrices: Iterator[tuple[str, Tensor]],
        rules: Mapping[str, Rule],
        faults: list[str],
    ) -> dict[str, Tensor]:
        """What this rank makes of a round; the others wait for its part, so what fails is told at the end."""
        names = self._owned[number]
        made: dict[str, Tensor] = {}
        try:
            made = orthogonalized(dict(matrices), rules)
            made = {name: matrix.contiguous() for name, matrix in made.items()}
        except Exception as error:
            reason = " ".join(str(error).split())
            faults.append(
                f"Muon: {names[0]} and others of its round could not be orthogonalised: "
                f"{type(error).__name__}: {reason}"
            )
        missing = next((name for name in names if name not in made), None)
        if missing is not None:
            faults.append(f"Muon: {missing} could not be put together, see the warning before")
        return made

    @property
    def bytes_received(self) -> tuple[int, int]:
        """From other ranks in the last step on the way to owners; and on all ways back since the first."""
        return self._exchange.bytes_received, self._returns.bytes_received
