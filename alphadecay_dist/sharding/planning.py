"""From the tuned weights to an exchange whose plan all ranks have agreed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.collectives import Collectives
from alphadecay_dist.sharding.exchange import Exchange, exchange_device
from alphadecay_dist.sharding.layout import ShardSource
from alphadecay_dist.sharding.work import plan_for
from alphadecay_dist.spectral import measured_rates

SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


def plan_exchange(
    weights: Sequence[Weight],
    sources: Callable[[], list[ShardSource]],
    settings: Settings,
    *,
    group: dist.ProcessGroup | None,
    dtype: torch.dtype | None,
    budget: int | None,
) -> tuple[Exchange, Mapping[str, int]]:
    """Plan owners and rounds for the weights as the engine holds them, and agree on the plan. Collective.

    Args:
        weights: those that are analysed.
        sources: gives them as the engine stores them; collective.
        settings: of the rule.
        group: the ranks that share the work.
        dtype: the type that weights travel in; None is their own.
        budget: bytes that the gathering may hold at once on a rank.

    Returns:
        The exchange, and the owner of each unit.

    Raises:
        UserError: the ranks have different settings or models, or weights of several types.
    """
    chosen = {**settings.as_dict(), "dtype": dtype, "memory_budget": budget}
    lines = [f"{name} {value}" for name, value in chosen.items()]
    lines += [f"{weight.name}: shape {weight.shape}, parts {parts_of(weight)}" for weight in weights]
    ranks = Collectives(group)
    ranks.require_equal(
        "the ranks were given different settings or models",
        lines,
        "construct AlphaDecay with the same ones on every rank",
        kind=UserError,
    )
    held = sources()
    tridiagonal = tridiagonal_weight(exchange_device(held, group), group)
    with ranks.raise_on_all_ranks():
        dtype = dtype or _only_dtype(held)
        blocks, planned = plan_for(
            weights,
            {source.name: source.pieces() for source in held},
            ranks.world_size,
            copied=[source.name for source in held if source.dtype != dtype],
            itemsize=dtype.itemsize,
            tridiagonal=tridiagonal,
            windows=settings.farms,
            budget=budget,
        )
    return Exchange(held, blocks, planned, dtype, group), planned.owners


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The type that weights travel in, by its name too: "bfloat16" or "bf16".

    Raises:
        UserError: it is no floating point type.
    """
    found = dtype
    if isinstance(dtype, str):
        name = dtype.removeprefix("torch.")
        found = getattr(torch, SHORT.get(name, name), None)
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        found = None
    if dtype is not None and found is None:
        raise UserError(f"dtype: found {shown(dtype)}, expected torch.bfloat16, torch.float32 or None")
    return found


def require_options(memory_budget: object, parts: object) -> None:
    """Refuse a budget that is no number of bytes, and parts that are no mapping.

    Raises:
        UserError: what was found.
    """
    if memory_budget is not None and not isinstance(memory_budget, int):
        raise UserError(
            f"memory_budget: found {shown(memory_budget)}, expected a whole number of bytes, or None"
        )
    if parts is not None and not isinstance(parts, Mapping):
        raise UserError(
            f"parts: found {shown(parts)}, expected sizes by pattern, such as {{'*.qkv': (64, 64, 64)}}"
        )
    for pattern, sizes in (parts or {}).items():
        if not isinstance(sizes, list | tuple) or not all(isinstance(size, int) for size in sizes):
            raise UserError(
                f"parts of {pattern}: found {shown(sizes)}, expected whole numbers, such as (64, 64, 64)"
            )


def parts_of(weight: Weight) -> list[str]:
    """The parts of a weight, over all its units."""
    return [part for unit in weight.units() for part in weight.parts(unit)]


def tridiagonal_weight(device: torch.device, group: dist.ProcessGroup | None) -> float:
    """How much slower tridiagonalisation is than a product, by the slowest rank. Collective."""
    own = int(measured_rates(device).tridiagonal_weight)
    return max(Collectives(group).gather(own))


def _only_dtype(sources: Sequence[ShardSource]) -> torch.dtype:
    """The type of all sources."""
    dtypes = {source.dtype for source in sources}
    if len(dtypes) != 1:
        found = ", ".join(sorted(map(str, dtypes)))
        raise UserError(
            f"tuned weights have types {found}, expected one; name the one to read them in: dtype=..."
        )
    return dtypes.pop()
