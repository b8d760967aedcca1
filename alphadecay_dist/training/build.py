"""What a run trains with: model, optimizer, controller, and what its task keeps beside the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.optimizer import build_optimizer, pick_apply
from alphadecay_dist.training.preflight import Options, ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import DecayConfig
from alphadecay_dist.training.tasks.companion import Companion
from alphadecay_dist.training.utilization import Utilization, peak_flops

# Gives a parameter its whole value, however the engine holds it.
Assign = Callable[[nn.Parameter, Tensor], None]


@dataclass(frozen=True)
class Built:
    """What a run trains with.

    Attributes:
        model: with its initial weights, as the engine holds them.
        optimizer: over its weights.
        decay: the controller; None for the uniform policy.
        companion: what the task keeps beside the weights.
        utilization: what an update costs, and what the ranks' devices could do.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    decay: AlphaDecay | None
    companion: Companion
    utilization: Utilization


def build(checked: ResolvedRun, options: Options, engine: TrainEngine, ranks: Ranks) -> Built:
    """Model with its initial weights, optimizer and engine, and the controller. Collective."""
    config = checked.config
    decay, picked = pick_apply(config, engine.premultiply_refusal())
    if picked:
        ranks.say(picked)
    model = engine.construct(checked.model.build)
    dtype = getattr(torch, config.train.dtype)
    fill(model, checked.model.initial_values(options.init_from), dtype, engine.assign)
    checked.model.set_buffers(model)
    optimizer = build_optimizer(model, config.optimizer, decay, fused=engine.device.type == "cuda")
    wrapped = engine.initialize(model, optimizer)
    return Built(
        model,
        optimizer,
        build_controller(model, optimizer, wrapped, decay, dtype),
        checked.model.companion(engine, model),
        utilization_of(checked, engine, ranks),
    )


def fill(model: nn.Module, value_of: Callable[[str], Tensor], dtype: torch.dtype, assign: Assign) -> None:
    """Give every parameter its initial value, rounded to the type of compute.

    The rounding makes all engines start from the same weights: some keep fp32 masters made from them.

    Args:
        model: the model to fill; its parameters may be sharded.
        value_of: the whole value of a parameter by name.
        dtype: ``train.dtype``.
        assign: how the engine takes a value.
    """
    for name, parameter in model.named_parameters():
        assign(parameter, value_of(name).to(dtype))


def build_controller(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    wrapped: Any | None,
    decay: DecayConfig,
    dtype: torch.dtype,
) -> AlphaDecay | None:
    """The controller of the decays; None for the uniform policy.

    Args:
        model: what is trained.
        optimizer: over it.
        wrapped: what :meth:`.TrainEngine.initialize` returned.
        decay: its settings, without ``auto``.
        dtype: ``train.dtype``.
    """
    if decay.policy == "uniform":
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"optimizer: found Adam\b")  # the published recipes name it
        return AlphaDecay(
            model,
            optimizer,
            engine=wrapped,
            dtype=dtype,
            memory_budget=decay.memory_budget,
            device=decay.device,
            apply=decay.apply,
            **vars(decay.settings()),
        )


def utilization_of(checked: ResolvedRun, engine: TrainEngine, ranks: Ranks) -> Utilization:
    """What an update costs, and what the ranks' devices could do."""
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None
    peak = peak_flops(name, checked.config.train.dtype)
    return Utilization(checked.model.flops(), None if peak is None else peak * ranks.world_size)
