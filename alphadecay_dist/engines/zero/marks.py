"""What DeepSpeed leaves on a model that it trains; DeepSpeed itself is not loaded to look for it."""

from __future__ import annotations

from torch import nn


def holds_weights(model: nn.Module) -> bool:
    """Whether DeepSpeed keeps the weights, or their masters, of its own: at stages 1 to 3."""
    return any(
        hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping") for parameter in model.parameters()
    )


def trained_by_deepspeed(model: nn.Module) -> bool:
    """Whether an engine was made of the model, at any stage: it leaves hooks on it."""
    hooks = [*model._forward_pre_hooks.values(), *model._forward_hooks.values()]
    return any(getattr(hook, "__module__", None) == "deepspeed.runtime.engine" for hook in hooks)
