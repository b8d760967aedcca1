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

    @property
    def layout(self) -> str:
        """``ddp``."""
        return "ddp"

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
        wrapped = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        _settle_buckets(wrapped)
        return wrapped

    def _micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._module.no_sync()

    def _computing(self) -> AbstractContextManager[Any]:
        low = self.config.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low)


def _settle_buckets(wrapped: DistributedDataParallel) -> None:
    """Let DDP choose its buckets by a backward that counts for nothing. Collective.

    It chooses them anew after its first backward, and on 3 ranks or more a gradient's sum depends on its
    place there: the first update after a resume would not be the unbroken run's.
    """
    model: Any = wrapped.module
    model.forward = lambda: sum(parameter.sum() for parameter in model.parameters())
    wrapped().backward()
    del model.forward
    wrapped.zero_grad()
