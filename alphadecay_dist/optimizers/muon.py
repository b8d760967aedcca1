"""Muon for weights that lie in pieces on ranks (FSDP2, HSDP), and by heads.

A step, on every rank:

1. The momentum of each piece is moved, elementwise: state is sharded as the weights are.
2. The updates (with Nesterov: gradient and momentum mixed) go to owner ranks in bf16, which orthogonalise
   equal shapes together, whatever group they are in, and come back to all who hold a piece.
3. Each piece is decayed by its group's decay, and the update is subtracted.

Each matrix has the numbers that ``torch.optim.Muon`` gives it where it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from alphadecay_dist.engines.native.dtensor import DTensorSource
from alphadecay_dist.engines.native.shares import local_gradient
from alphadecay_dist.errors import UserError
from alphadecay_dist.optimizers.batches import Rule
from alphadecay_dist.optimizers.newton_schulz import COEFFICIENTS, EPS, STEPS, rate_ratio
from alphadecay_dist.optimizers.places import TRAVEL, OnEachRank, OnOwners, Place, UpdateSource
from alphadecay_dist.params.fused import Cut
from alphadecay_dist.params.groups import names_in
from alphadecay_dist.sharding.buffers import needing_memory
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.layout import Layout


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A parameter, the group that it is in now, and its name: its module's, or its place in the groups."""

    name: str
    parameter: nn.Parameter
    group: Mapping[str, Any]


class ShardedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` whose parameters may be DTensors, and whose products are batched.

    Groups may be as many as matrices: what is orthogonalised together depends on shapes alone.

    Args:
        params: matrices, or groups of them, such as those of :func:`alphadecay_dist.param_groups`. DTensors
            are orthogonalised by owner ranks; whole ones by every rank.
        lr: learning rate.
        weight_decay: decoupled.
        momentum: of the gradient.
        nesterov: mix the gradient in once more.
        ns_coefficients: of the quintic.
        eps: least norm to divide by.
        ns_steps: iterations.
        adjust_lr_fn: ``original`` (None is the same) or ``match_rms_adamw``, by the shape of what is
            orthogonalised.
        cuts: how matrices are cut into heads that are orthogonalised for themselves, see
            :func:`alphadecay_dist.optimizers.division.head_cuts`.
        process_group: ranks that hold the pieces; the default group if there is one.
        memory_budget: bytes that a rank may hold at once beside its own updates; None is the default.

    Raises:
        ValueError: a parameter that is no matrix, or a setting out of its range.
        UserError: at the first step, a placement or a mesh that cannot be served.
        RunError: at a step, a rank had not the memory for its part; on every rank.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = EPS,
        ns_steps: int = STEPS,
        adjust_lr_fn: str | None = None,
        *,
        cuts: Mapping[nn.Parameter, Cut] | None = None,
        process_group: dist.ProcessGroup | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__(
            params, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn
        )
        self._cuts = dict(cuts or {})
        self._process_group = process_group
        self._budget = memory_budget
        self._places: list[tuple[Place, list[str]]] = []
        self._placed: list[tuple[str, nn.Parameter]] = []
        self._ranks = Collectives(None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. Collective where parameters are DTensors."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = list(self._matrices())
        rules = {own.name: self._rule(own) for own in matrices}
        self._settle_places(matrices, rules)
        with self._ranks.raise_on_all_ranks(), needing_memory("the updates of Muon"):
            updates = self._updates(matrices)
            for place, names in self._places:
                place.prepare({name: updates[name] for name in names})
        for place, _ in self._places:
            place.orthogonalize(rules)
        self._apply([own for own in matrices if own.parameter.grad is not None], updates, rules)
        return loss

    def _matrices(self) -> Iterator[_Matrix]:
        """All parameters, with or without a gradient, as the groups have them now."""
        for number, group in enumerate(self.param_groups):
            names = names_in(group)
            for place, parameter in enumerate(group["params"]):
                name = names[place] if place < len(names) else f"{number}.{place}"
                yield _Matrix(name, parameter, group)

    def _rule(self, own: _Matrix) -> Rule:
        group = own.group
        cut = self._cuts.get(own.parameter)
        return Rule(cut, group["ns_steps"], tuple(group["ns_coefficients"]), group["eps"])

    def _updates(self, matrices: Sequence[_Matrix]) -> dict[str, Tensor]:
        """Move this rank's momentum; what it holds of the matrices to orthogonalise, flat and in bf16."""
        moved = [own for own in matrices if own.parameter.grad is not None]
        buffers = [_local(self._momentum(own.parameter)) for own in moved]
        gradients = [_gradient(own.parameter) for own in moved]
        for momentum, places in _together(own.group["momentum"] for own in moved).items():
            torch._foreach_lerp_([buffers[n] for n in places], [gradients[n] for n in places], 1 - momentum)
        return {own.name: self._update_of(own) for own in matrices}

    def _update_of(self, own: _Matrix) -> Tensor:
        parameter = own.parameter
        if parameter.grad is None:
            weight = _local(parameter)
            return torch.zeros(weight.numel(), dtype=TRAVEL, device=weight.device)
        update = buffer = _local(self._momentum(parameter))
        if own.group["nesterov"]:
            update = _gradient(parameter).lerp(buffer, own.group["momentum"])
        return update.to(TRAVEL, copy=True).reshape(-1)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Its momentum; one that a load took from ``torch.optim.Muon``, whole, is cut as the weight is."""
        state = self.state[parameter]
        found: Tensor | None = state.get("momentum_buffer")
        if found is None:
            found = torch.zeros_like(parameter.detach())
        elif isinstance(parameter, DTensor) and not isinstance(found, DTensor):
            # Every rank has the whole one: nothing is sent.
            mesh, placements = parameter.device_mesh, parameter.placements
            found = distribute_tensor(found, mesh, placements, src_data_rank=None)
        state["momentum_buffer"] = found
        return found

    def _apply(
        self, matrices: Sequence[_Matrix], updates: Mapping[str, Tensor], rules: Mapping[str, Rule]
    ) -> None:
        """Decay this rank's pieces, and subtract their updates."""
        # By identity: a rate that is a tensor on a device is waited for once, not once for each matrix.
        known = {id(lr): float(lr) for lr in (own.group["lr"] for own in matrices)}
        rates = [known[id(own.group["lr"])] for own in matrices]
        weights = [_local(own.parameter) for own in matrices]
        decays = [own.group["weight_decay"] for own in matrices]
        _scale(weights, [1 - rate * decay for rate, decay in zip(rates, decays, strict=True)])
        ratios = [
            rate_ratio(own.group["adjust_lr_fn"], rules[own.name].block_shape(tuple(own.parameter.shape)))
            for own in matrices
        ]
        given = [updates[own.name].view(weight.shape) for own, weight in zip(matrices, weights, strict=True)]
        moves = [rate * ratio for rate, ratio in zip(rates, ratios, strict=True)]
        for move, places in _together(moves).items():
            torch._foreach_add_([weights[n] for n in places], [given[n] for n in places], alpha=-move)

    def _settle_places(self, matrices: list[_Matrix], rules: Mapping[str, Rule]) -> None:
        """Where each matrix is orthogonalised, worked out again where the groups have got other ones."""
        named = [(own.name, own.parameter) for own in matrices]  # attach() and a load give other names
        if len(named) == len(self._placed) and all(
            one[0] == other[0] and one[1] is other[1] for one, other in zip(named, self._placed, strict=True)
        ):
            return
        self._placed, self._places = [], []
        sharded = [own for own in matrices if isinstance(own.parameter, DTensor)]
        whole = {own.name: tuple(own.parameter.shape) for own in matrices if own not in sharded}
        group = (self._process_group or dist.group.WORLD) if sharded else None
        self._ranks = Collectives(group)
        if sharded:
            self._ranks.require_equal(
                "the ranks of Muon's process group hold the matrices with different ranks",
                [f"{own.name}: mesh of ranks {_mesh_of(own)}" for own in sharded],
                "shard all matrices over one mesh, or give process_group= the ranks of one",
                kind=UserError,
            )
            with self._ranks.raise_on_all_ranks():
                sources = _sources(sharded, group)
            owners = OnOwners(sources, rules, group, self._budget)
            self._places.append((owners, [own.name for own in sharded]))
        if whole:
            self._places.append((OnEachRank(whole, self._budget), list(whole)))
        self._placed = named


def _sources(sharded: Sequence[_Matrix], group: dist.ProcessGroup | None) -> list[UpdateSource]:
    """Of updates that lie as their weights do; until the first of them these stand for their sizes."""
    members = [] if group is None else dist.get_process_group_ranks(group)
    ranks = {rank: number for number, rank in enumerate(members)}
    return [
        UpdateSource(
            own.name,
            tuple(own.parameter.shape),
            _layout(own, ranks),
            _local(own.parameter).detach().reshape(-1),
        )
        for own in sharded
    ]


def _together(numbers: Iterable[float]) -> dict[float, list[int]]:
    """Places of equal numbers: one call serves what has the same."""
    found: dict[float, list[int]] = {}
    for place, number in enumerate(numbers):
        found.setdefault(number, []).append(place)
    return found


def _scale(weights: list[Tensor], factors: Sequence[float | Tensor]) -> None:
    """Multiply weights in place; where decays are tensors, so are factors, and nobody waits for them."""
    numbers = [factor for factor in factors if not isinstance(factor, Tensor)]
    if weights and len(numbers) == len(factors):
        torch._foreach_mul_(weights, numbers)
        return
    for weight, factor in zip(weights, factors, strict=True):
        weight.mul_(factor)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of it."""
    if isinstance(parameter, DTensor):
        return local_gradient(parameter)
    assert parameter.grad is not None
    return parameter.grad


def _mesh_of(own: _Matrix) -> list[int]:
    assert isinstance(own.parameter, DTensor)
    found: list[int] = own.parameter.device_mesh.mesh.flatten().tolist()
    return found


def _layout(own: _Matrix, ranks: Mapping[int, int]) -> Layout:
    assert isinstance(own.parameter, DTensor)
    return DTensorSource(own.name, own.parameter, ranks).layout


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
