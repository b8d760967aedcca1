"""A loss that is not finite stops the update on every engine and every rank, without a word between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def to_backward(loss: Tensor, scale: Tensor) -> Tensor:
    """The loss times its scale, or where it is not finite something whose gradients are not either.

    Summed over the ranks they make the global norm NaN, on which each engine decides. Nothing waits for the
    device here.
    """
    return loss * torch.where(loss.detach().isfinite(), scale, math.nan)
