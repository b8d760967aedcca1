"""The weights of a model -> the matrices that have owners, what each costs, and who does what when."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from alphadecay_dist.decay.settings import REFERENCE, Settings
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.coverage import require_weights
from alphadecay_dist.params.entries import linears
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.params.tuned_rule import released_ends
from alphadecay_dist.params.wrappers import named_modules
from alphadecay_dist.sharding.layout import Block, Flat, Piece
from alphadecay_dist.sharding.ownership import Plan, cost, default_budget, plan
from alphadecay_dist.sharding.traffic import Routes
from alphadecay_dist.spectral import Windows


def analysed(weights: Sequence[Weight], model: nn.Module, settings: Settings) -> list[Weight]:
    """The weights as the rule takes them, the same for a run, its dry run and a plan.

    The released code (preset ``reference``) tunes neither the first nor the last Linear, and no fused weight
    in parts.

    Raises:
        UserError: nothing is left, or FARMS' windows do not fit into a matrix.
    """
    kept = list(weights)
    if settings.preset == REFERENCE:
        ends = released_ends(linears(named_modules(model)))
        kept = [weight.whole() for weight in weights if weight.name not in ends]
    require_weights(kept, model)
    if settings.farms is not None:
        for weight in kept:
            _check_fit(weight, settings.farms)
    return kept


def plan_for(
    weights: Sequence[Weight],
    layouts: Mapping[str, Sequence[Piece]],
    world_size: int,
    *,
    itemsize: int,
    tridiagonal: float,
    windows: Windows | None = None,
    budget: int | None = None,
    copied: Collection[str] = (),
) -> tuple[list[Block], Plan]:
    """The blocks of the weights, and a plan for them: pure, the same on every rank.

    Args:
        weights: the tuned weights.
        layouts: the pieces of each, by name.
        world_size: number of ranks.
        itemsize: bytes of an element as it travels.
        tridiagonal: see :func:`alphadecay_dist.sharding.ownership.cost`.
        windows: FARMS' windows, where only these are analysed.
        budget: bytes that a rank may hold at once for the gathering; None is the default.
        copied: see :class:`alphadecay_dist.sharding.traffic.Routes`.
    """
    blocks = [block for weight in weights for block in _blocks(weight)]
    costs = costs_of(weights, tridiagonal, windows)
    nbytes = {block.name: block.index.numel * itemsize for block in blocks}
    shapes = {block.name: block.shape for block in blocks}
    wholes = {weight.name: weight.shape for weight in weights}
    routes = Routes(layouts, wholes, blocks, world_size, itemsize, copied)
    most = default_budget(nbytes) if budget is None else budget
    return blocks, plan(costs, nbytes, world_size, most, shapes, routes.move)


def costs_of(weights: Sequence[Weight], tridiagonal: float, windows: Windows | None) -> dict[str, float]:
    """The work of each unit, by name."""
    return {unit: _unit_cost(weight, tridiagonal, windows) for weight in weights for unit in weight.units()}


def _unit_cost(weight: Weight, tridiagonal: float, windows: Windows | None) -> float:
    shapes: Sequence[tuple[int, ...]] = weight.part_shapes()
    if windows is not None:
        shapes = [(windows.rows, windows.columns)] * math.prod(windows.grid) * len(shapes)
    return math.fsum(cost(shape, tridiagonal) for shape in shapes)


def _blocks(weight: Weight) -> list[Block]:
    """The units of a weight as ranges of its flattened tensor."""
    size = math.prod(weight.unit_shape)
    return [
        Block(unit, weight.name, Flat(place * size, (place + 1) * size), weight.unit_shape)
        for place, unit in enumerate(weight.units())
    ]


def _check_fit(weight: Weight, windows: Windows) -> None:
    for shape in weight.part_shapes():
        try:
            windows.check_fit(shape)
        except ValueError as error:
            raise UserError(f"{weight.name}: {error}") from None
