"""LLaMA, the first architecture: its JSON needs no model_type, and its random weights are drawn here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.tasks.initial import generator_for

REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
MOST_LAYERS = 10_000
# All that is taken of a config: others, such as attn_implementation, could bring code from elsewhere.
TAKEN = (
    *REQUIRED,
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "pad_token_id",
)


def llama_config(name: str, sizes: Mapping[str, Any], seq_len: int) -> LlamaConfig:
    """A LLaMA config from the values of a JSON.

    Raises:
        UserError: a size is missing, a hidden size that the heads do not divide, fewer positions than the
            sequence length; ``name`` is what the errors call it.
    """
    _check_sizes(name, sizes, seq_len)
    taken = {"tie_word_embeddings": False, **{key: sizes[key] for key in TAKEN if key in sizes}}
    return LlamaConfig(use_cache=False, **taken)


def llama_values(config: LlamaConfig) -> dict[str, Any]:
    """The values of a JSON that gives the config back, whichever version of transformers reads it.

    Those of the rotary embedding are ``rope_theta`` and, scaled, ``rope_scaling``: all versions take these.
    """
    values = {key: getattr(config, key) for key in TAKEN if not key.startswith("rope_")}
    rope = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    values["rope_theta"] = rope.pop("rope_theta", None) or config.rope_theta
    scaled = rope.get("rope_type", "default") != "default"
    return values | {"rope_scaling": rope if scaled else None}


def _check_sizes(name: str, sizes: Mapping[str, Any], seq_len: int) -> None:
    for key in REQUIRED:
        check_whole(name, key, sizes.get(key))
    if sizes["num_hidden_layers"] > MOST_LAYERS:  # each is built, if without storage
        raise UserError(
            f"model {name}: num_hidden_layers is {shown(sizes['num_hidden_layers'])}, expected {MOST_LAYERS} "
            "or less"
        )
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden % heads:
        raise UserError(f"model {name}: hidden_size {hidden} is not divisible by num_attention_heads {heads}")
    if hidden // heads % 2 and "head_dim" not in sizes:
        raise UserError(
            f"model {name}: head width {hidden // heads} is odd, expected even (rotary embedding)"
        )
    if "num_key_value_heads" in sizes:
        shared = sizes["num_key_value_heads"]
        check_whole(name, "num_key_value_heads", shared)
        if heads % shared:
            raise UserError(
                f"model {name}: num_attention_heads {heads} is not divisible by num_key_value_heads {shared}"
            )
    positions = sizes.get("max_position_embeddings", 2048)
    check_whole(name, "max_position_embeddings", positions)
    if seq_len > positions:
        raise UserError(
            f"train.seq_len: found {seq_len}, above max_position_embeddings {positions} of {name}"
        )


def check_whole(name: str, key: str, value: Any) -> None:
    """Refuse a size that is not a whole number from 1 on."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"model {name}: {key} is {shown(value)}, expected a whole number from 1 on")


def initial_value(name: str, shape: tuple[int, ...], std: float, seed: int) -> Tensor:
    """The fp32 initial value of one parameter, on the CPU."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.empty(shape).normal_(0.0, std, generator=generator_for(name, seed))
