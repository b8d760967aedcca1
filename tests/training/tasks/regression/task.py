from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.initial import generator_for
from alphadecay_dist.training.tasks.task import Model, Task
from tests.training.tasks.regression.average import Average
from tests.training.tasks.regression.data import Numbers, Pairs


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.linear(x)


class Chain(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class RegressionModel(Model):
    def __init__(self, config: Config, width: int, depth: int) -> None:
        self._config, self.width, self._depth = config, width, depth
        with torch.device("meta"):
            self._shapes = self.build()

    @property
    def shapes(self) -> nn.Module:
        return self._shapes

    def values(self) -> dict[str, Any]:
        return {"width": self.width, "depth": self._depth}

    def build(self) -> nn.Module:
        return Chain(self.width, self._depth)

    def initial_values(self, init_from: str | None) -> Callable[[str], Tensor]:
        if init_from is not None:
            raise UserError(f"--init_from {init_from}: a regression begins at random")
        std, seed = self.width**-0.5, self._config.train.seed
        size = self.width, self.width
        return lambda name: torch.empty(size).normal_(0.0, std, generator=generator_for(name, seed))

    def set_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            buffer.fill_(1.0)

    def flops(self) -> float:
        return 6.0 * self._depth * self.width**2 * self._config.train.global_batch

    def loss(self, model: nn.Module, batch: Pairs) -> Tensor:
        return (model(batch.questions) - batch.answers).float().square().sum()

    def measure(self, model: nn.Module, batch: Pairs) -> Tensor:
        squares = (model(batch.questions) - batch.answers).float().square().mean(-1)  # (b,)
        return torch.stack([self.width * squares.sum(), (squares < 1).sum()])

    def numbers(self, sums: Sequence[float], targets: float) -> dict[str, float]:
        squares, close = sums
        error = (squares / targets / self.width) ** 0.5
        return {"loss": squares / targets, "error": error, "close": close / targets, "pairs": int(targets)}

    def companion(self, engine: TrainEngine, model: nn.Module) -> Average:
        return Average(engine, self._config.task.average)


class Regression(Task):
    samples = "pairs"
    targets = "pairs"
    shown = "error"
    fixed = ("task.noise", "task.average")
    files = ("width.txt",)

    def model(self, config: Config) -> RegressionModel:
        sizes = re.fullmatch(r"(\d+)x(\d+)", config.model.name)
        if sizes is None:
            raise UserError(f"model.name: found {config.model.name!r}, expected width and depth, as in 64x2")
        return RegressionModel(config, int(sizes[1]), int(sizes[2]))

    def check_data(self, config: Config, model: Model) -> None:
        """Numbers are never missing."""

    def open(self, config: Config, model: Model) -> Numbers:
        assert isinstance(model, RegressionModel)
        return Numbers(config, model.width)
