"""How the trainer builds and steps DeepSpeed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from alphadecay_dist.engines.nonfinite import to_backward
from alphadecay_dist.engines.process_group import join, local_device
from alphadecay_dist.engines.state import EngineState
from alphadecay_dist.engines.zero import config as zero_config
from alphadecay_dist.engines.zero.marks import is_deepspeeds_muon
from alphadecay_dist.engines.zero.state import zero_state
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.groups import rate_of


class ZeroTraining:
    """A DeepSpeed engine from start to end.

    Args:
        config: the resolved DeepSpeed config, see :func:`alphadecay_dist.engines.zero.config.resolve`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.stage: int = config.get("zero_optimization", {}).get("stage", 0)
        self.device = local_device()
        self._engine: Any = None
        self._norm: Tensor | None = None  # at stage 0, where DeepSpeed has none
        self._made_group = False
        self._eager: AbstractContextManager[Any] = contextlib.nullcontext()

    @property
    def name(self) -> str:
        """Engine and sharding, as a checkpoint names them."""
        return f"deepspeed ZeRO-{self.stage}"

    @property
    def options(self) -> dict[str, Any]:
        """The resolved config, to be shown."""
        return self.config

    def premultiply_refusal(self) -> str | None:
        """Why decays cannot be multiplied into the weights under this config; None where they can."""
        return zero_config.premultiply_refusal(self.config)

    def start(self) -> None:
        """Join the process group: NCCL on GPUs, gloo on CPUs; alone where no launcher set the variables."""
        quiet = logging.WARNING if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR
        deepspeed.utils.logging.logger.setLevel(quiet)
        if self.device.type == "cpu":
            # DeepSpeed would compile a shared-memory all-reduce here, and fail where there is no compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._made_group = join(self.device)
        deepspeed.init_distributed(verbose=False)

    def check_config(self) -> None:
        """Let DeepSpeed check its own keys and values.

        Raises:
            UserError: what DeepSpeed has against the config.
        """
        try:
            deepspeed.DeepSpeedConfig(self.config)
        except Exception as error:  # a value of the wrong type fails with whatever error it causes first
            reason = " ".join(str(error).split()).partition(" [type=")[0]
            raise UserError(f"DeepSpeed config: refused by DeepSpeed: {reason}; correct that value") from None

    def construct(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Build the model; under stage 3 each parameter is partitioned as soon as it is made."""
        if self.stage < 3:
            return build()
        with deepspeed.zero.Init(config_dict_or_path=self.config):
            return build()

    @torch.no_grad()
    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write the value on rank 0 where it is partitioned; DeepSpeed then scatters it."""
        partitioned = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=partitioned):
            parameter.copy_(value)

    def initialize(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Wrap model and optimizer; returns the ``DeepSpeedEngine``."""
        if self.stage == 0:
            optimizer.register_step_pre_hook(self._drop_nonfinite)  # before AlphaDecay's
        if is_deepspeeds_muon(optimizer) and self.device.type == "cpu":
            # It compiles its products, which on a CPU takes minutes, and a compiler.
            self._eager = torch.compiler.set_stance("force_eager")
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self.config)
        return self._engine

    def set_learning_rate(self, learning_rate: float) -> None:
        """Write the learning rate into every group, as its ratio says."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate_of(group, learning_rate)

    def gradients(self, losses: Iterator[Callable[[nn.Module], Tensor]], scale: Tensor) -> Tensor:
        """All gradients of one update.

        Args:
            losses: a function a micro-batch, from the model to its summed loss.
            scale: what to multiply a rank's summed losses with, before DeepSpeed's mean over ranks.

        Returns:
            The sum of this rank's losses, a detached scalar.
        """
        self._engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, loss_of in enumerate(losses):
            if number:
                self._engine.step()  # the micro-batch before: counted, no more
            loss = loss_of(self._engine)
            with self._eager:
                self._engine.backward(to_backward(loss, scale), scale_wrt_gas=False)
            total += loss.detach()
        return total

    def step(self, before_step: Callable[[], None]) -> bool:
        """The update itself. Stages 1 to 3 skip it themselves where the norm is not finite.

        Args:
            before_step: called before it.

        Returns:
            Whether it was made.
        """
        before_step()
        if self.stage == 0:
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            self._norm = get_total_norm(gradients)
        with self._eager:
            self._engine.step()
        norm = self.grad_norm
        assert norm is not None  # zero_config refuses what switches it off
        return math.isfinite(norm)

    def _drop_nonfinite(self, *_: Any) -> None:
        """At stage 0, after DeepSpeed's clipping: without gradients the optimizer's step changes nothing."""
        if self._norm is not None and not math.isfinite(self._norm):
            self._engine.module.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, losses: Iterator[Callable[[nn.Module], Tensor]]) -> Tensor:
        """The sum of what this rank's losses return, scalars or vectors, without gradients; fp64."""
        self._engine.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for loss_of in losses:
            total = total + loss_of(self._engine).double()
        return total

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last update's gradients before clipping; None before the first."""
        norm = self._norm if self.stage == 0 else self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def state(self) -> EngineState:
        """Weights and optimizer state as this rank holds them."""
        return zero_state(self._engine)

    def close(self) -> None:
        """Leave the process group that it made."""
        self._engine = None
        if self._made_group:
            dist.destroy_process_group()
