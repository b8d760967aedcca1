"""How the trainer steps torch's own engines; what differs is in a file each."""

from __future__ import annotations

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from alphadecay_dist.engines.native.config import TorchConfig
from alphadecay_dist.engines.native.state import TorchState
from alphadecay_dist.engines.nonfinite import to_backward
from alphadecay_dist.engines.process_group import join, local_device
from alphadecay_dist.params.groups import rate_of


class TorchTraining(ABC):
    """Weights in fp32, sharded or not, under a torch optimizer."""

    def __init__(self, config: TorchConfig) -> None:
        self.config = config
        self.device = local_device()
        self._model: Any = None  # holds the parameters
        self._module: Any = None  # is called: the model, or what wraps it
        self._optimizer: Any = None
        self._state: Any = None
        self._norm: Tensor | None = None
        self._made_group = False

    @property
    def name(self) -> str:
        """Engine and sharding, as a checkpoint names them."""
        return self.config.name

    @abstractmethod
    def check_config(self) -> None:
        """Check what can be checked once the ranks are joined."""

    @abstractmethod
    def construct(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Build the model, sharded where the engine shards; its weights are not set yet."""

    @abstractmethod
    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give a parameter its whole value, the same on every rank."""

    @abstractmethod
    def _wrap(self, model: nn.Module) -> nn.Module:
        """What is called for a forward: the model, or what wraps it."""

    def _loss(self, loss_of: Callable[[nn.Module], Tensor]) -> Tensor:
        """A micro-batch's loss, computed where the engine sees the forward."""
        return loss_of(self._module)

    @abstractmethod
    def _micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Context of a forward and backward; after the ``last`` one of an update gradients are reduced."""

    @abstractmethod
    def _computing(self) -> AbstractContextManager[Any]:
        """Context of a forward in the type of compute."""

    def initialize(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the model and its optimizer over."""
        self._model, self._optimizer = model, optimizer
        self._module = self._wrap(model)
        self._state = TorchState(model, optimizer)

    @property
    def options(self) -> dict[str, Any]:
        """The settings, to be shown."""
        return asdict(self.config)

    def premultiply_refusal(self) -> str | None:
        """None: decays can be multiplied into the weights."""
        return None

    def start(self) -> None:
        """Join the process group."""
        self._made_group = join(self.device)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Write the learning rate into every group, as its ratio says."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate_of(group, learning_rate)

    def gradients(self, losses: Iterator[Callable[[nn.Module], Tensor]], scale: Tensor) -> Tensor:
        """All gradients of one update; see :class:`alphadecay_dist.engines.training.TrainEngine`."""
        self._module.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, loss_of in enumerate(losses, 1):
            with self._micro_batch(last=number == self.config.accumulation):
                with self._computing():
                    loss = self._loss(loss_of)
                to_backward(loss, scale).backward()
            total += loss.detach()
        norm = get_total_norm(p.grad for p in self._model.parameters() if p.grad is not None)
        self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return total

    def step(self, before_step: Callable[[], None]) -> bool:
        """The update itself; see :class:`alphadecay_dist.engines.training.TrainEngine`."""
        assert self._norm is not None
        finite = math.isfinite(self._norm)
        if finite and self.config.clip > 0:
            parameters = [p for p in self._model.parameters() if p.grad is not None]
            clip_grads_with_norm_(parameters, self.config.clip, self._norm)
        before_step()
        if finite:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return finite

    @torch.no_grad()
    def evaluate(self, losses: Iterator[Callable[[nn.Module], Tensor]]) -> Tensor:
        """The sum of what this rank's losses return, scalars or vectors, without gradients; fp64."""
        self._module.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self._computing():
            for loss_of in losses:
                total = total + self._loss(loss_of).double()
        return total

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last update's gradients before clipping; None before the first."""
        return None if self._norm is None else float(self._norm)

    def state(self) -> TorchState:
        """Weights and optimizer state as this rank holds them."""
        return self._state

    def close(self) -> None:
        """Leave the process group that it made; what still uses it would now and then abort the exit."""
        self._model = self._module = self._optimizer = self._state = None
        gc.collect()
        if self._made_group:
            dist.destroy_process_group()
