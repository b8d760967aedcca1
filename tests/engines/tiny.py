"""A small model of uneven matrices under a real DeepSpeed engine, built as the trainer builds its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from alphadecay_dist.engines.zero import config as zero_config
from alphadecay_dist.engines.zero.training import ZeroTraining
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.params.wrappers import named_modules
from alphadecay_dist.training.build import fill
from alphadecay_dist.training.tasks.language.llama import initial_value

SHAPES = [(43, 127), (127, 43), (61, 67), (5, 3), (64, 172)]
TUNABLE = [(64, 172), (61, 67), (172, 64), (67, 61), (50, 90)]


class Uneven(nn.Module):
    """Blocks side by side, a matrix each; the output is one scalar that every weight has a part in."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self._blocks([nn.Linear(n, m, bias=False) for m, n in shapes]))

    def _blocks(self, linears: list[nn.Linear]) -> list[nn.ModuleDict]:
        return [nn.ModuleDict({"up": linear}) for linear in linears]

    def forward(self, x: Tensor) -> Tensor:
        """Mean squares of all outputs, of (b, 172) inputs."""
        linears = [linear for block in self.layers for linear in cast(nn.ModuleDict, block).values()]
        outputs = [linear(x[:, : linear.in_features]) for linear in linears]
        return torch.stack([output.float().square().mean() for output in outputs]).sum()


class Pairs(Uneven):
    """The same with two matrices a block, ``up`` and ``down``."""

    def _blocks(self, linears: list[nn.Linear]) -> list[nn.ModuleDict]:
        pairs = zip(linears[::2], linears[1::2], strict=True)
        return [nn.ModuleDict({"up": up, "down": down}) for up, down in pairs]


def allow_fp16() -> None:
    """Let DeepSpeed train in fp16 on this CPU: it asks for AVX512-FP16, and torch computes without."""
    get_accelerator().is_fp16_supported = lambda: True


def value_of(name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The initial weight of a matrix, whole."""
    return initial_value(name, shape, 0.1, 0).to(dtype)


def matrices_of(model: nn.Module) -> list[Weight]:
    """Every Linear of the model, large enough to tune or not."""
    modules = named_modules(model).items()
    linears = [(name, module) for name, module in modules if isinstance(module, nn.Linear)]
    return [
        Weight(name, (module.out_features, module.in_features), None, module.weight)
        for name, module in linears
    ]


def filled(
    shapes: list[tuple[int, int]], build: Callable[[list[tuple[int, int]]], nn.Module] = Uneven
) -> tuple[Any, dict[str, Tensor]]:
    """A model with known fp32 weights, and these by name."""
    model = build(shapes)
    values = {m.name: value_of(f"{m.name}.weight", m.shape, torch.float32) for m in matrices_of(model)}
    with torch.no_grad():
        for matrix in matrices_of(model):
            matrix.parameter.copy_(values[matrix.name])
    return model, values


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """A param group a matrix, as param_groups() makes them."""
    return [{"params": [m.parameter], "weight_decay": 0.1, "module": m.name} for m in matrices_of(model)]


def adamw(model: nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of most engines here."""
    return torch.optim.AdamW(groups, lr=1e-2)


def engine_of(
    stage: int,
    shapes: list[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    accumulation: int = 1,
    groups: Callable[[nn.Module], list[dict[str, Any]]] = groups_of,
    clip: float = 0.0,
    build: Callable[[list[tuple[int, int]]], nn.Module] = Uneven,
    optimizer_for: Callable[[nn.Module, list[dict[str, Any]]], torch.optim.Optimizer] = adamw,
    **zero_options: Any,
) -> tuple[Any, nn.Module, torch.optim.Optimizer]:
    """Engine, model with known initial weights and client optimizer; inside a rank."""
    path = Path(__file__).parents[2] / "ds_configs" / f"zero{max(1, stage)}.json"
    config = json.loads(path.read_text())
    config["zero_optimization"] |= {"stage": stage, **zero_options}
    config = zero_config.resolve(
        config,
        global_batch=dist.get_world_size() * accumulation,
        micro_batch=1,
        accumulation=accumulation,
        clip=clip,
        dtype=str(dtype).removeprefix("torch."),
    )
    training = ZeroTraining(config)
    training.start()
    model = training.construct(lambda: build(shapes))
    named = dict(zip((f"{m.name}.weight" for m in matrices_of(model)), shapes, strict=True))
    fill(model, lambda name: value_of(name, named[name], torch.float32), dtype, training.assign)
    optimizer = optimizer_for(model, groups(model))
    return training.initialize(model, optimizer), model, optimizer


def backward(engine: Any, number: int = 0) -> None:
    """Forward and backward of one micro-batch, another on every rank."""
    generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
    parameter = next(engine.module.parameters())
    engine.backward(engine(torch.randn(1, 172, generator=generator).to(parameter.dtype)))
