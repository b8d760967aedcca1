"""A loss that is not finite stops the update on every engine and every rank, without communication."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def to_backward(loss: Tensor, scale: Tensor) -> Tensor:
    """The loss times its scale; where it is not finite, its gradients are NaN.

    Summed over the ranks these make the global norm NaN, by which each engine decides. Nothing waits for the
    device here.
    """
    return loss * torch.where(loss.detach().isfinite(), scale, math.nan)
