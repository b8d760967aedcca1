"""The one thing that is asked about ranks here: whether a tensor is all there."""

from __future__ import annotations

from torch import Tensor


def is_sharded(weight: Tensor) -> bool:
    """Whether this is a DTensor, of which a process may hold a part alone: it has a device mesh."""
    return hasattr(weight, "device_mesh")
