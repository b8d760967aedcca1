"""What a caller of :class:`alphadecay_dist.AlphaDecay` may give beside the settings of the rule, checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from alphadecay_dist.errors import UserError, shown

SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


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


def require_parts(parts: object) -> None:
    """Refuse parts that are not a mapping of sizes.

    Raises:
        UserError: what was found.
    """
    if parts is not None and not isinstance(parts, Mapping):
        raise UserError(
            f"parts: found {shown(parts)}, expected sizes by pattern, such as {{'*.qkv': (64, 64, 64)}}"
        )
    for pattern, sizes in (parts or {}).items():
        if not isinstance(sizes, list | tuple) or not all(isinstance(size, int) for size in sizes):
            raise UserError(
                f"parts of {pattern}: found {shown(sizes)}, expected whole numbers, such as (64, 64, 64)"
            )
