"""How the trainer builds DistributedDataParallel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist.engines.native.training import TorchTraining


class DDPTraining(TorchTraining):
    """Whole fp32 weights on every rank; bf16 compute is autocast's."""

    def check_config(self) -> None:
        """Nothing can be wrong."""

    def construct(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Build the model on the rank's device."""
        with self.device:
            return build()

    @torch.no_grad()
    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Copy the value that every rank has; nothing is sent."""
        parameter.copy_(value)

    def _wrap(self, model: nn.Module) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        module = _Applied(model)
        wrapped = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
        _settle_buckets(wrapped)
        return wrapped

    def _loss(self, loss_of: Callable[[nn.Module], Tensor]) -> Tensor:
        return self._module(loss_of)

    def _micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._module.no_sync()

    def _computing(self) -> AbstractContextManager[Any]:
        low = self.config.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low)


class _Applied(nn.Module):
    """What DDP wraps: it is called with a function of the model, and returns what that does.

    DDP reduces the gradients of what its module returns. Here that may be any function: a micro-batch's loss,
    or the sum of all parameters that :func:`_settle_buckets` takes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Tensor]) -> Tensor:
        """The function of the model."""
        return function(self.model)


def _settle_buckets(wrapped: DistributedDataParallel) -> None:
    """Let DDP choose its buckets by a backward that counts for nothing. Collective.

    It chooses them again after its first backward, and on 3 ranks or more a gradient's sum depends on its
    place in them: the first update after a resume would differ from that of an unbroken run.
    """
    wrapped(_sum_of_parameters).backward()
    wrapped.zero_grad()


def _sum_of_parameters(model: nn.Module) -> Tensor:
    """A number that every parameter has a gradient of, in the order in which DDP is to meet them."""
    return sum((parameter.sum() for parameter in model.parameters()), torch.zeros(()))
