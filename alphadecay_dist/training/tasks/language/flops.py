"""What a causal language model costs."""

from __future__ import annotations

from typing import Any

from torch import nn

from alphadecay_dist.errors import UserError

# What configs call the experts that a token takes.
TAKEN_EXPERTS = (
    "num_experts_per_tok",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)
EXPERTS = "experts"  # the module that holds them, stacked


def flops_per_token(shapes: Any, config: Any, seq_len: int) -> float:
    """FLOPs of forward and backward a token (arXiv 2204.02311, appendix B).

    6 for every weight that multiplies (all but tables that are looked up: embeddings that are not the head
    too), of experts those that a token takes; and 12 times layers, width of all heads and sequence length, or
    that of the layer's window, for attention, of which a causal mask needs only half.

    Args:
        shapes: the model, on any device.
        config: its config.
        seq_len: tokens a sequence.

    Raises:
        UserError: it has experts, and its config does not say how many of them a token takes.
    """
    return 6 * _weights(shapes, config) + 6 * _width(config) * _spans(config, seq_len)


def _weights(shapes: Any, config: Any) -> float:
    """Weights that multiply a token."""
    head = shapes.get_output_embeddings().weight
    tables = {
        id(own.weight) for own in shapes.modules() if isinstance(own, nn.Embedding) and own.weight is not head
    }
    total = 0.0
    for name, parameter in shapes.named_parameters():
        if id(parameter) in tables:
            continue
        stacked = parameter.ndim == 3 or (parameter.ndim > 1 and EXPERTS in name.split("."))
        total += parameter.numel() * (_taken(config) / parameter.shape[0] if stacked else 1)
    return total


def _taken(config: Any) -> int:
    """Experts that a token takes."""
    for key in TAKEN_EXPERTS:
        found = getattr(config, key, None)
        if isinstance(found, int):
            return found
    raise UserError(
        f"model.name: has experts, and {type(config).__name__} does not say how many of them a token takes; "
        f"expected one of {', '.join(TAKEN_EXPERTS)}"
    )


def _width(config: Any) -> int:
    """Widths of all heads' keys and values together, of a layer."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "qk_head_dim", None) or width
    values = getattr(config, "v_head_dim", None) or width
    return heads * (keys + values)


def _spans(config: Any, seq_len: int) -> int:
    """Positions that a token is compared with, over all layers."""
    layers: int = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return layers * seq_len
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return sum(min(window, seq_len) if kind == "sliding_attention" else seq_len for kind in kinds)
