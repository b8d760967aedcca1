"""Where the releases of torch, DeepSpeed and transformers differ that docs/versions.md lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

# From torch 2.9 on each backend has its own precision of fp32 matrix products; before it there is one.
_PRECISION_PER_BACKEND = hasattr(torch.backends, "fp32_precision")
FULL_PRECISION = "ieee" if _PRECISION_PER_BACKEND else "highest"


def matmul_settings() -> dict[str, str]:
    """By type of device, the name of the setting that has the precision of fp32 matrix products."""
    if _PRECISION_PER_BACKEND:
        backends = {"cuda": "torch.backends.cuda.matmul", "cpu": "torch.backends.mkldnn.matmul"}
        return {device: f"{backend}.fp32_precision" for device, backend in backends.items()}
    return dict.fromkeys(("cuda", "cpu"), "torch.get_float32_matmul_precision()")


def matmul_precisions() -> dict[str, str]:
    """By type of device, the precision of fp32 matrix products, in the words of its setting."""
    if _PRECISION_PER_BACKEND:
        return {device: backend.fp32_precision for device, backend in _backends().items()}
    return dict.fromkeys(matmul_settings(), torch.get_float32_matmul_precision())


def set_matmul_precision(device: str, precision: str) -> None:
    """Set the precision of fp32 matrix products on a type of device; before torch 2.9 on all."""
    if _PRECISION_PER_BACKEND:
        _backends()[device].fp32_precision = precision
    else:
        torch.set_float32_matmul_precision(precision)


def _backends() -> dict[str, Any]:
    # Each backend's own, for torch.get_float32_matmul_precision() raises once a user has set one of them.
    mkldnn: Any = torch.backends.mkldnn
    return {"cuda": torch.backends.cuda.matmul, "cpu": mkldnn.matmul}


def decays_decoupled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its weight decay is AdamW's, a product; from torch 2.7 on Adam can have it too."""
    if isinstance(optimizer, torch.optim.AdamW):
        return True
    return isinstance(optimizer, torch.optim.Adam) and all(
        group.get("decoupled_weight_decay", False) for group in optimizer.param_groups
    )


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


def zenflow(engine: Any) -> bool:
    """Whether a DeepSpeed engine uses ZenFlow, which 0.17.1 does not have."""
    return bool(getattr(engine, "zenflow", False))
