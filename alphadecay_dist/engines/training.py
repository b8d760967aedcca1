"""What the trainer asks of an engine, and what all engines begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alphadecay_dist.engines.registry import ENGINES, load
from alphadecay_dist.engines.settings import RunSettings
from alphadecay_dist.engines.state import EngineState

Loss = Callable[[nn.Module], Tensor]  # of a micro-batch: from the model to its summed loss, a scalar
Losses = Iterator[Loss]


class TrainEngine(Protocol):
    """An engine as the trainer sees it, from start to end; in this order."""

    device: torch.device

    @property
    def name(self) -> str:
        """Engine and sharding, as a checkpoint names them: ``deepspeed ZeRO-2``."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """The engine's own settings, to be shown."""
        ...

    def premultiply_refusal(self) -> str | None:
        """Why decays cannot be multiplied into the weights under this engine; None where they can."""
        ...

    def start(self) -> None:
        """Join the process group: NCCL on GPUs, gloo on CPUs; alone where no launcher set the variables."""
        ...

    def check_config(self) -> None:
        """Check what can be checked once the ranks are joined.

        Raises:
            UserError: a setting that cannot be.
        """
        ...

    def construct(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Build the model, sharded where the engine shards; its weights are not set yet."""
        ...

    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Give a parameter its whole value, the same on every rank. Collective."""
        ...

    def initialize(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any | None:
        """Take the model and its optimizer over; returns the ``engine`` that AlphaDecay needs, if any."""
        ...

    def set_learning_rate(self, learning_rate: float) -> None:
        """Write the learning rate into every group: by its own ratio, see :func:`.params.groups.rate_of`."""
        ...

    def gradients(self, losses: Losses, scale: Tensor) -> Tensor:
        """All gradients of one update; the host does not wait for the device.

        Args:
            losses: one a micro-batch.
            scale: fp32 scalar, to multiply a rank's summed losses with, before the mean over ranks.

        Returns:
            The sum of this rank's losses, a detached fp64 scalar.
        """
        ...

    def step(self, before_step: Callable[[], None]) -> bool:
        """The update itself, unless the gradients' global norm is not finite.

        Args:
            before_step: called where :meth:`alphadecay_dist.AlphaDecay.step` is to be.

        Returns:
            Whether it was made, the same on every rank; where not, weights and optimizer are as before.
        """
        ...

    def evaluate(self, losses: Losses) -> Tensor:
        """The sum of what this rank's losses return, scalars or vectors, without gradients; fp64."""
        ...

    @property
    def grad_norm(self) -> float | None:
        """Global norm of the last update's gradients before clipping; None where the engine has none."""
        ...

    def state(self) -> EngineState:
        """Weights and optimizer state as this rank holds them, to be saved and loaded."""
        ...

    def close(self) -> None:
        """Leave the process group, if the engine made it."""
        ...


def training_for(name: str, settings: Any) -> TrainEngine:
    """The engine of that name. Only its own library is loaded: DeepSpeed's import takes seconds.

    Args:
        name: a key of :data:`alphadecay_dist.engines.registry.ENGINES`.
        settings: as :func:`settings_for` made them.
    """
    return load(ENGINES[name].training)(settings)


def settings_for(asked: RunSettings) -> Any:
    """The engine's own settings, a dict or a dataclass, of what a recipe asks.

    Raises:
        UserError: the engine cannot do that.
    """
    return load(ENGINES[asked.name].settings)(asked)
