"""What DeepSpeed leaves on a model that it trains; DeepSpeed itself is not loaded to look for it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getclosurevars
from typing import Any

from torch import nn


def holds_weights(model: nn.Module) -> bool:
    """Whether DeepSpeed keeps the weights, or their masters, of its own: at stages 1 to 3."""
    return any(
        hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping") for parameter in model.parameters()
    )


def trained_by_deepspeed(model: nn.Module) -> bool:
    """Whether an engine was made of the model, at any stage: it leaves hooks on it."""
    return bool(_hooks(model))


def engine_on(model: nn.Module) -> Any | None:
    """The engine that was made of the model, for hosts that show the model alone; None without one.

    Its hooks call it, and nothing else on the model leads to it.
    """
    return next((getclosurevars(hook).nonlocals.get("self") for hook in _hooks(model)), None)


def is_deepspeeds_muon(optimizer: object) -> bool:
    """Whether it is DeepSpeed's own Muon, which its ZeRO optimizers do the products of."""
    return type(optimizer).__module__.startswith("deepspeed.runtime.zero.muon")


def _hooks(model: nn.Module) -> list[Callable[..., Any]]:
    hooks = [*model._forward_pre_hooks.values(), *model._forward_hooks.values()]
    return [hook for hook in hooks if getattr(hook, "__module__", None) == "deepspeed.runtime.engine"]


def is_torchs_muon(optimizer: Any) -> bool:
    """Whether torch's Muon, or one made of it, has a group; it needs whole matrices."""
    return any("ns_coefficients" in group for group in optimizer.param_groups)
