"""The weights of a model -> the matrices that have owners, what each costs, and who does what when."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alphadecay_dist.sharding.inventory import Weight
from alphadecay_dist.sharding.layout import Block, Flat
from alphadecay_dist.sharding.ownership import Plan, cost, default_budget, plan
from alphadecay_dist.spectral import Windows


def plan_for(
    weights: Sequence[Weight],
    world_size: int,
    *,
    itemsize: int,
    tridiagonal: float,
    windows: Windows | None = None,
    budget: int | None = None,
) -> tuple[list[Block], Plan]:
    """The blocks of the weights, and a plan for them: pure, the same on every rank.

    Args:
        weights: the tuned weights.
        world_size: number of ranks.
        itemsize: bytes of an element as it travels.
        tridiagonal: see :func:`alphadecay_dist.sharding.ownership.cost`.
        windows: FARMS' windows, where only these are analysed.
        budget: bytes of gathered weights at an owner in a round; None is the default.
    """
    blocks = [block for weight in weights for block in _blocks(weight)]
    costs = costs_of(weights, tridiagonal, windows)
    nbytes = {block.name: block.index.numel * itemsize for block in blocks}
    return blocks, plan(costs, nbytes, world_size, default_budget(nbytes) if budget is None else budget)


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
