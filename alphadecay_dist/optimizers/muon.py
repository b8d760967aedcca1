"""Muon for weights that lie in pieces on ranks (FSDP2, HSDP), and by heads.

A step, on every rank:

1. The momentum of each piece is moved, elementwise: state is sharded as the weights are.
2. The updates (with Nesterov: gradient and momentum mixed) go to owner ranks in bf16, which orthogonalise
   equal shapes together, whatever group they are in, and come back to all who hold a piece.
3. Each piece is decayed by its group's decay, and the update is subtracted.

Each matrix has the numbers that ``torch.optim.Muon`` gives it where it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alphadecay_dist.engines.native.dtensor import DTensorSource
from alphadecay_dist.engines.native.shares import local_gradient
from alphadecay_dist.optimizers.batches import Rule
from alphadecay_dist.optimizers.newton_schulz import COEFFICIENTS, EPS, STEPS, rate_ratio
from alphadecay_dist.optimizers.places import TRAVEL, OnEachRank, OnOwners, Place, UpdateSource
from alphadecay_dist.params.fused import Cut
from alphadecay_dist.params.groups import names_in
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
        self._placed: list[nn.Parameter] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. Collective where parameters are DTensors."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = list(self._matrices())
        rules = {own.name: self._rule(own) for own in matrices}
        updates = {own.name: self._update_of(own) for own in matrices}  # flat, bf16
        self._settle_places(matrices, rules, updates)
        for place, names in self._places:
            place.orthogonalize({name: updates[name] for name in names}, rules)
        for own in matrices:
            if own.parameter.grad is not None:
                self._apply(own, updates.pop(own.name), rules[own.name])
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

    def _update_of(self, own: _Matrix) -> Tensor:
        """Move this rank's momentum; what it holds of the matrix to orthogonalise, flat and in bf16."""
        parameter, weight = own.parameter, _local(own.parameter)
        if parameter.grad is None:
            return torch.zeros(weight.numel(), dtype=TRAVEL, device=weight.device)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.detach())
        gradient = local_gradient(parameter) if isinstance(parameter, DTensor) else parameter.grad
        buffer = _local(state["momentum_buffer"])
        buffer.lerp_(gradient, 1 - own.group["momentum"])
        update = gradient.lerp(buffer, own.group["momentum"]) if own.group["nesterov"] else buffer
        return update.to(TRAVEL, copy=True).reshape(-1)

    def _apply(self, own: _Matrix, update: Tensor, rule: Rule) -> None:
        """Decay this rank's piece, and subtract its update."""
        weight, lr = _local(own.parameter), float(own.group["lr"])
        ratio = rate_ratio(own.group["adjust_lr_fn"], rule.block_shape(tuple(own.parameter.shape)))
        weight.mul_(1 - lr * float(own.group["weight_decay"]))
        weight.add_(update.view(weight.shape), alpha=-lr * ratio)

    def _settle_places(
        self, matrices: list[_Matrix], rules: Mapping[str, Rule], updates: Mapping[str, Tensor]
    ) -> None:
        """Where each matrix is orthogonalised, worked out again where the groups have got other ones."""
        parameters = [own.parameter for own in matrices]
        if len(parameters) == len(self._placed) and all(
            one is other for one, other in zip(parameters, self._placed, strict=True)
        ):
            return
        self._placed, self._places = parameters, []
        sharded = [own for own in matrices if isinstance(own.parameter, DTensor)]
        whole = {own.name: tuple(own.parameter.shape) for own in matrices if own not in sharded}
        if sharded:
            group = self._process_group or dist.group.WORLD
            members = dist.get_process_group_ranks(group)
            ranks = {rank: number for number, rank in enumerate(members)}
            sources = [
                UpdateSource(
                    own.name,
                    tuple(own.parameter.shape),
                    _layout(own, ranks),
                    updates[own.name],
                )
                for own in sharded
            ]
            owners = OnOwners(sources, rules, group, self._budget)
            self._places.append((owners, [own.name for own in sharded]))
        if whole:
            self._places.append((OnEachRank(whole, self._budget), list(whole)))


def _layout(own: _Matrix, ranks: Mapping[int, int]) -> Layout:
    assert isinstance(own.parameter, DTensor)
    return DTensorSource(own.name, own.parameter, ranks).layout


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
