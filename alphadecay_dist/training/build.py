"""What a run trains with: model, optimizer, controller, and what its task keeps beside the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.condition.spectral_condition import SpectralCondition
from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.protocol import DecayController, controller_for
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.optimizer import build_optimizer, pick_apply
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import ResolvedRun
from alphadecay_dist.training.process.ranks import Ranks
from alphadecay_dist.training.recipe import DecayConfig, TelemetryConfig
from alphadecay_dist.training.tasks.companion import Companion
from alphadecay_dist.training.tasks.initial import seed_of
from alphadecay_dist.training.utilization import Utilization, peak_flops

# Gives a parameter its whole value, however the engine holds it.
Assign = Callable[[nn.Parameter, Tensor], None]


@dataclass(frozen=True)
class Built:
    """What a run trains with.

    Attributes:
        model: with its initial weights, as the engine holds them.
        optimizer: over its weights.
        decay: the controller of the policy.
        condition: telemetry of the spectral condition; None where none is asked for.
        companion: what the task keeps beside the weights.
        utilization: what an update costs, and what the ranks' devices could do.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    decay: DecayController
    condition: SpectralCondition | None
    companion: Companion
    utilization: Utilization


def build(checked: ResolvedRun, options: Options, engine: TrainEngine, ranks: Ranks) -> Built:
    """Model with its initial weights, optimizer and engine; the policy's controller. Collective."""
    config = checked.config
    decay, picked = pick_apply(config, engine.premultiply_refusal())
    decay = decay.spanning(config.train.steps)
    if picked:
        ranks.say(picked)
    model = engine.construct(checked.model.build)
    dtype = getattr(torch, config.train.dtype)
    fill(model, checked.model.initial_values(options.init_from), dtype, engine.assign)
    checked.model.set_buffers(model)
    optimizer = build_optimizer(
        model,
        config.optimizer,
        decay,
        fused=engine.device.type == "cuda",
        engine=config.engine.name,
        options=engine.options,
    )
    wrapped = engine.initialize(model, optimizer)
    torch.manual_seed(seed_of(f"dropout on rank {ranks.rank}", config.train.seed))
    controller = _controller(model, optimizer, wrapped, decay, dtype, config.logging.spectra > 0)
    return Built(
        model,
        optimizer,
        controller,
        _condition(model, wrapped, config.telemetry, controller, decay.weight_decay, dtype),
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


def _controller(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    wrapped: Any,
    decay: DecayConfig,
    dtype: torch.dtype,
    histograms: bool,
) -> DecayController:
    """The controller of the policy; ``wrapped`` is what the engine's :meth:`.TrainEngine.initialize` gave."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"optimizer: found Adam\b")  # the published recipes name it
        return controller_for(model, optimizer, decay, engine=wrapped, dtype=dtype, histograms=histograms)


def _condition(
    model: nn.Module,
    wrapped: Any,
    telemetry: TelemetryConfig,
    controller: DecayController,
    base: float,
    dtype: torch.dtype,
) -> SpectralCondition | None:
    """The telemetry that a recipe asks for; ``base`` is every decay without a policy. Collective."""
    if not telemetry.spectral_condition:
        return None
    return SpectralCondition(
        model,
        engine=wrapped,
        every=telemetry.spectral_condition,
        which=telemetry.which,
        heads=telemetry.heads,
        tokens=telemetry.tokens,
        memory_budget=telemetry.memory_budget,
        decay=controller if isinstance(controller, AlphaDecay) else base,
        dtype=dtype,
    )


def utilization_of(checked: ResolvedRun, engine: TrainEngine, ranks: Ranks) -> Utilization:
    """What an update costs, and what the ranks' devices could do."""
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else None
    peak = peak_flops(name, checked.config.train.dtype)
    return Utilization(checked.model.flops(), None if peak is None else peak * ranks.world_size)
