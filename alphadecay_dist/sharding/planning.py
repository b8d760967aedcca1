"""From the tuned weights to a schedule that all ranks have agreed on.

1. The ranks compare settings and weights: all must have been given the same (:func:`require_same_choices`).
2. The engine says how it holds the weights: a source each, with its layout.
3. The weights become blocks, which get owners and rounds; these make the schedule of the exchange. All of it
   follows from layouts, shapes and budget alone, so that every rank works it out for itself, and
   ``alphadecay plan`` without ranks (:func:`schedule_for`).
4. The ranks compare layouts, owners and rounds, before the first byte of a weight moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from alphadecay_dist.decay.maps import require_patterns
from alphadecay_dist.decay.policies import STATIC
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.errors import UserError
from alphadecay_dist.notices import notice
from alphadecay_dist.params.coverage import require_weights
from alphadecay_dist.params.entries import linears
from alphadecay_dist.params.heads import attentions, cut_by_heads
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.params.tuned_rule import released_ends
from alphadecay_dist.params.wrappers import named_modules
from alphadecay_dist.sharding.collectives import Collectives, collective_device
from alphadecay_dist.sharding.exchange import Exchange
from alphadecay_dist.sharding.layout import Block, Flat, Layout, ShardSource, check_cover
from alphadecay_dist.sharding.ownership import TRIDIAGONAL, cost, default_budget, plan
from alphadecay_dist.sharding.routes import Routes
from alphadecay_dist.sharding.schedule import Schedule, schedule_of
from alphadecay_dist.spectral import Windows


def analysed(
    weights: Sequence[Weight],
    model: nn.Module,
    settings: Settings,
    parts: Mapping[str, Sequence[int]] | None = None,
) -> list[Weight]:
    """The weights as the rule takes them, the same for a run, its dry run and a plan.

    A preset may leave out the first and the last Linear, and keep fused weights whole. Attention may be cut
    by heads; rank 0 says which of its weights cannot be.

    Args:
        weights: the tuned ones.
        model: their model.
        settings: of the rule.
        parts: explicit sizes that the weights were cut by, which heads leave as they are.

    Raises:
        UserError: nothing is left, no weight has heads where these are asked for, or FARMS' windows do not
            fit into a matrix.
    """
    kept = list(weights)
    if not settings.choices.tunes_ends:
        ends = released_ends(linears(named_modules(model)))
        kept = [weight for weight in kept if weight.name not in ends]
    if not settings.choices.cuts_fused:
        kept = [weight.whole() for weight in kept]
    require_weights(kept, model)
    if settings.heads:
        kept = _by_heads(kept, model, parts)
    if settings.farms is not None:
        for weight in kept:
            _check_fit(weight, settings.farms)
    return kept


def require_same_choices(
    weights: Sequence[Weight],
    settings: Settings,
    *,
    group: dist.ProcessGroup | None,
    dtype: torch.dtype | None,
) -> None:
    """Compare across ranks what was chosen, before anything follows from it. Collective.

    Raises:
        UserError: the ranks have different settings or models.
    """
    chosen = {**settings.as_dict(), "dtype": dtype, "memory_budget": settings.memory_budget}
    lines = [f"{name} {value}" for name, value in chosen.items()]
    lines += [f"{weight.name}: shape {weight.shape}, parts {parts_of(weight)}" for weight in weights]
    Collectives(group).require_equal(
        "the ranks were given different settings or models",
        lines,
        "construct AlphaDecay with the same ones on every rank",
        kind=UserError,
    )


def plan_exchange(
    weights: Sequence[Weight],
    sources: Callable[[], list[ShardSource]],
    settings: Settings,
    *,
    group: dist.ProcessGroup | None,
    dtype: torch.dtype | None = None,
    budget: int | None = None,
) -> Exchange:
    """An exchange of the weights as the engine holds them, by a schedule that all ranks share. Collective.

    Args:
        weights: those that are analysed.
        sources: gives them as the engine stores them; collective.
        settings: of the rule.
        group: the ranks that share the work.
        dtype: the type that weights travel in; None is their own.
        budget: bytes that the gathering may hold at once on a rank; None is the default.

    Raises:
        UserError: weights of several types.
        ValueError: the pieces of a weight do not cover it.
        RuntimeError: the ranks planned differently, or one does not hold what its layout says.
    """
    ranks = Collectives(group)
    held = sources()
    device = exchange_device(held, group)
    with ranks.raise_on_all_ranks():
        dtype = dtype or _only_dtype(held)
        schedule = schedule_for(
            weights,
            {source.name: source.layout for source in held},
            ranks.world_size,
            itemsize=dtype.itemsize,
            device=device.type,
            windows=settings.farms,
            budget=budget,
            copied=[source.name for source in held if source.dtype != dtype],
        )
    require_one_schedule(held, schedule, dtype, device, group)
    return Exchange(held, schedule, dtype, device, group)


def schedule_for(
    weights: Sequence[Weight],
    layouts: Mapping[str, Layout],
    world_size: int,
    *,
    itemsize: int,
    device: str,
    windows: Windows | None = None,
    budget: int | None = None,
    copied: Collection[str] = (),
) -> Schedule:
    """Owners and rounds for the units of the weights, and what the exchange of them does: pure.

    Args:
        weights: the tuned weights.
        layouts: of each, by name.
        world_size: number of ranks.
        itemsize: bytes of an element as it travels.
        device: type of the devices where matrices arrive, a key of ``TRIDIAGONAL``.
        windows: FARMS' windows, where only these are analysed.
        budget: bytes that a rank may hold at once for the gathering; None is the default.
        copied: see :class:`alphadecay_dist.sharding.routes.Routes`.
    """
    blocks = [block for weight in weights for block in _blocks(weight)]
    costs = costs_of(weights, TRIDIAGONAL[device], windows)
    nbytes = {block.name: block.index.numel * itemsize for block in blocks}
    shapes = {block.name: block.shape for block in blocks}
    wholes = {weight.name: weight.shape for weight in weights}
    routes = Routes(layouts, wholes, blocks, world_size, itemsize, copied)
    most = default_budget(nbytes) if budget is None else budget
    return schedule_of(plan(costs, nbytes, world_size, most, shapes, routes.move), routes)


def costs_of(weights: Sequence[Weight], tridiagonal: float, windows: Windows | None) -> dict[str, float]:
    """The work of each unit, by name; see :func:`alphadecay_dist.sharding.ownership.cost`."""
    return {unit: _unit_cost(weight, tridiagonal, windows) for weight in weights for unit in weight.units()}


def parts_of(weight: Weight) -> list[str]:
    """The parts of a weight, over all its units."""
    return [part for unit in weight.units() for part in weight.parts(unit)]


def require_factors(settings: Settings, weights: Sequence[Weight]) -> None:
    """Refuse factors of ``static`` that are of none of the weights.

    Raises:
        UserError: a pattern matches nothing.
    """
    if settings.policy == STATIC:
        require_patterns(settings, [part for weight in weights for part in parts_of(weight)])


def exchange_device(sources: Sequence[ShardSource], group: dist.ProcessGroup | None) -> torch.device:
    """Where weights are packed and put together: on GPUs if they lie there and NCCL serves. Collective."""
    ranks = Collectives(group)
    with ranks.raise_on_all_ranks():
        pieces = (source.local() for source in sources)
        on_gpu = any(piece.device.type == "cuda" for piece in pieces if piece is not None)
    on_any = any(ranks.gather(on_gpu))  # a rank may hold nothing
    return collective_device(group, "cuda" if on_any else "cpu")


def require_one_schedule(
    sources: Sequence[ShardSource],
    schedule: Schedule,
    dtype: torch.dtype,
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> None:
    """Compare what the schedule follows from across ranks, and check what all then have. Collective.

    Args:
        sources: the tensors, as this rank has them.
        schedule: of this rank.
        dtype: the type that weights travel in.
        device: where they are packed.
        group: the ranks.

    Raises:
        RuntimeError: the ranks planned differently.
        ValueError: the pieces of a source do not cover it.
    """
    layouts, planned = schedule.routes.layouts, schedule.plan
    tensors = [f"{s.name}: shape {s.shape}, {s.dtype}, {layouts[s.name].digest}" for s in sources]
    lines = [
        f"weights travel as {dtype} between {device.type}s",
        *tensors,
        *map(str, schedule.routes.blocks.values()),
        *(f"{name}: owner {rank}" for name, rank in sorted(planned.owners.items())),
        *(f"round {number}: {' '.join(names)}" for number, names in enumerate(planned.rounds)),
        f"budget {planned.budget}",
    ]

    def details(place: int) -> list[str]:
        """The pieces behind a digest; any other line stands for itself."""
        if not 1 <= place <= len(tensors):
            return [lines[place]]
        source = sources[place - 1]
        start = f"{source.name}: shape {source.shape}"
        pieces = enumerate(layouts[source.name].pieces)
        held = [f"{start}, piece {n}: ranks {piece.holders} hold {piece.index}" for n, piece in pieces]
        return [*held, f"{start}, {source.dtype}"]

    Collectives(group).require_equal(
        "the ranks planned the gathering of weights differently",
        lines,
        "build the same model with the same sharding on every rank",
        details=details,
    )
    # Of the sources that lie alike one is enough.
    for source in {(layouts[source.name], source.shape): source for source in sources}.values():
        check_cover(source.name, layouts[source.name], source.shape)


def _by_heads(
    weights: Sequence[Weight], model: nn.Module, parts: Mapping[str, Sequence[int]] | None
) -> list[Weight]:
    found = cut_by_heads(weights, attentions(model), parts)
    found.require()
    line = found.line()
    if line is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        notice(f"AlphaDecay: {line}")
    return found.weights


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


def _only_dtype(sources: Sequence[ShardSource]) -> torch.dtype:
    """The type of all sources."""
    dtypes = {source.dtype for source in sources}
    if len(dtypes) != 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise UserError(
            f"tuned weights have types {found}, expected one; name the one to read them in: dtype=..."
        )
    return dtypes.pop()
