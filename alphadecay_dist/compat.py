"""Where the releases of torch, DeepSpeed and transformers differ that docs/versions.md lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any


def manages_accumulation(engine: Any) -> bool:
    """Whether a DeepSpeed engine counts micro-batches itself; early releases always do."""
    ask = getattr(type(engine), "managed_gradient_accumulation", None)
    return ask is None or ask(engine)


def super_offload(engine: Any) -> bool:
    """Whether a DeepSpeed engine uses SuperOffload, which 0.17.6 does not have."""
    return hasattr(type(engine), "super_offload") and engine.super_offload()


def flat_offsets(zero: Any, number: int) -> Sequence[int]:
    """Where each parameter of a group begins in its flat weights, at ZeRO-1 and 2.

    DeepSpeed 0.17.6 lays them one behind the other and keeps no list; 0.19.8 aligns each.
    """
    kept = getattr(zero, "round_robin_bit16_offsets", None)
    if kept is not None:
        return kept[number]
    return [0, *accumulate(parameter.numel() for parameter in zero.round_robin_bit16_groups[number][:-1])]
