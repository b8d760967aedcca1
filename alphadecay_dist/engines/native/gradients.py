"""The gradients of a torch optimizer's parameters, whole or in pieces, as sources of an exchange."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alphadecay_dist.engines.native.shares import local_gradient
from alphadecay_dist.sharding.layout import ShardSource


class GradientSource:
    """The gradient of one weight, as it is at construction: it lies as the weight does.

    Collective where the gradient is a partial sum.

    Args:
        weight: how the weight lies.
        parameter: what holds it, and has the gradient; None of which is a gradient of zeros.
    """

    def __init__(self, weight: ShardSource, parameter: nn.Parameter) -> None:
        self.name = weight.name
        self.shape = weight.shape
        self.dtype = weight.dtype
        self.layout = weight.layout
        self._weight = weight
        gradient = parameter.grad
        if gradient is not None and isinstance(parameter, DTensor):
            gradient = local_gradient(parameter)
        self._gradient = gradient

    def local(self) -> Tensor | None:
        """This rank's piece, flattened; None where it holds nothing of the weight."""
        own = self._weight.local()
        if own is None:
            return None
        return torch.zeros_like(own) if self._gradient is None else self._gradient.detach().reshape(-1)
