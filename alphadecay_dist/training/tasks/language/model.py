"""The LLaMA to train: its config, its initial weights, its loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from alphadecay_dist.engines.versions import require
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.config import named_text, names_in
from alphadecay_dist.training.recipe import TrainConfig
from alphadecay_dist.training.tasks.initial import generator_for
from alphadecay_dist.training.tasks.language.hf_config import require_llama
from alphadecay_dist.training.tasks.language.loss import LossHead

require("transformers")

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


MODELS = resources.files("alphadecay_dist.recipes") / "models"


def model_names() -> list[str]:
    """Names of the model configs that come with the package."""
    return names_in(MODELS, ".json")


def read_model_config(name: str, seq_len: int) -> LlamaConfig:
    """A LLaMA config by name or by the path of its JSON.

    Raises:
        UserError: unknown or unreadable, a size missing, a hidden size that the heads do not divide, or
            fewer positions than the sequence length.
    """
    text = named_text("model.name", name, MODELS, (".json",), "; or give a path to a JSON")
    try:
        sizes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"model.name {name}: not JSON: {error}") from None
    if not isinstance(sizes, dict):
        raise UserError(f"model.name {name}: found {shown(sizes)}, expected a JSON object")
    require_llama(f"model.name {name}", sizes, TAKEN)
    return config_of(name, sizes, seq_len)


def config_of(name: str, sizes: Mapping[str, Any], seq_len: int) -> LlamaConfig:
    """A LLaMA config from the values of a JSON.

    Raises:
        UserError: see :func:`read_model_config`; ``name`` is what the errors call it.
    """
    _check_sizes(name, sizes, seq_len)
    taken = {"tie_word_embeddings": False, **{key: sizes[key] for key in TAKEN if key in sizes}}
    try:
        config = LlamaConfig(use_cache=False, **taken)
        nn.Embedding(config.vocab_size, 1, config.pad_token_id, device="meta")  # checks the padding token
        build_on_meta(config)
    except Exception as error:  # transformers and torch raise a dozen unrelated types
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"model {name}: transformers cannot build a LLaMA of it: {type(error).__name__}: {reason}; "
            "correct that value"
        ) from None
    return config


def values_of(config: LlamaConfig) -> dict[str, Any]:
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
        _check_whole(name, key, sizes.get(key))
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
        _check_whole(name, "num_key_value_heads", shared)
        if heads % shared:
            raise UserError(
                f"model {name}: num_attention_heads {heads} is not divisible by num_key_value_heads {shared}"
            )
    positions = sizes.get("max_position_embeddings", 2048)
    _check_whole(name, "max_position_embeddings", positions)
    if seq_len > positions:
        raise UserError(
            f"train.seq_len: found {seq_len}, above max_position_embeddings {positions} of {name}"
        )


def _check_whole(name: str, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"model {name}: {key} is {shown(value)}, expected a whole number from 1 on")


class Llama(LlamaForCausalLM):
    """transformers' LLaMA, whose output is the loss: logits of a whole batch are never held."""

    def __init__(self, config: LlamaConfig) -> None:
        # transformers would set the padding token's row to 0, which zero.Init has taken away by then.
        padding, config.pad_token_id = config.pad_token_id, None
        super().__init__(config)
        config.pad_token_id = self.model.embed_tokens.padding_idx = padding
        self.lm_head.__class__ = LossHead  # its parameter may be sharded, or the embedding's, already

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of the fp32 next-token losses over the non-pad tokens of a micro-batch, a scalar.

        Args:
            input_ids: (b, s).
            labels: (b, s), IGNORE for padding.
        """
        hidden = self.model(input_ids=input_ids).last_hidden_state  # (b, s, h)
        return self.lm_head(hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def build_model(config: LlamaConfig, train: TrainConfig) -> Llama:
    """A LLaMA without meaningful weights; give it some with :func:`fill`."""
    model = Llama(config)
    if train.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if train.compile:
        for block in model.model.layers:
            block.compile()
    return model


def build_on_meta(config: LlamaConfig) -> Llama:
    """The model's names and shapes without any storage."""
    with torch.device("meta"):
        model = Llama(config)
    model.tie_weights()  # transformers 5.0 leaves it out of a model without storage
    return model


def fill_tables(model: nn.Module) -> None:
    """Give the rotary embeddings their fp32 tables, which late storage lacks.

    zero.Init makes them in the type of compute. Frequencies in bf16 turn far positions by radians too much
    or too little: the model would be another than the one that other engines, or transformers, compute.
    """
    for module in model.modules():
        if isinstance(module, LlamaRotaryEmbedding):
            tables = dict(LlamaRotaryEmbedding(module.config).named_buffers())
            for name, buffer in list(module.named_buffers()):
                module.register_buffer(name, tables[name].to(buffer.device), persistent=False)


def random_values(shapes: LlamaForCausalLM, seed: int) -> Callable[[str], Tensor]:
    """Initial values that depend on the seed and the parameter's name alone, never on engine or rank.

    Matrices and embeddings are normal with the config's ``initializer_range``, vectors of norms are one.
    """
    sizes = {name: tuple(parameter.shape) for name, parameter in shapes.named_parameters()}
    std = shapes.config.initializer_range
    return lambda name: initial_value(name, sizes[name], std, seed)


def initial_value(name: str, shape: tuple[int, ...], std: float, seed: int) -> Tensor:
    """The fp32 initial value of one parameter, on the CPU."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return torch.empty(shape).normal_(0.0, std, generator=generator_for(name, seed))
