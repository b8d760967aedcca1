"""What a model's config.json may say: a LLaMA, and nothing that would make it another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import LlamaConfig

from alphadecay_dist.checkpoint.quantised import quantisation_of
from alphadecay_dist.errors import UserError, shown

MODEL_TYPE, ARCHITECTURE = "llama", "Llama"
# Keys of the family's other configs that change what the model computes. Left out, or with one of NEUTRAL's
# values, they change nothing.
CHANGING = (
    "attention_multiplier",
    "attn_logit_softcapping",
    "clip_qkv",
    "embedding_multiplier",
    "final_logit_softcapping",
    "layer_types",
    "logit_scale",
    "logits_scaling",
    "mup_width_multiplier",
    "n_routed_experts",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "partial_rotary_factor",
    "qk_norm",
    "qkv_bias",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "scale_depth",
    "scale_emb",
    "sliding_window",
    "use_bias",
    "use_qk_norm",
    "use_qkv_bias",
)
NEUTRAL: tuple[Any, ...] = (None, False, 0, 1, [], "full_attention")
# What the shapes of tensors do not tell, of all that a LLaMA's config says.
FUNCTION = (
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def require_llama(sizes: Mapping[str, Any], where: str) -> None:
    """Refuse the config of another model.

    Args:
        sizes: the content of a config.json; one without ``model_type`` is taken for a LLaMA's.
        where: what the error calls it.

    Raises:
        UserError: another architecture, a key that changes what a LLaMA computes, or quantised weights.
    """
    found = sizes.get("model_type", MODEL_TYPE)
    architectures = sizes.get("architectures") or []
    others = [name for name in architectures if not str(name).startswith(ARCHITECTURE)]
    if found != MODEL_TYPE or others:
        name = shown(others[0] if found == MODEL_TYPE else found)
        raise UserError(
            f"{where}: is the config of another architecture ({name}), expected {MODEL_TYPE!r}, the one that "
            "this trainer builds; for others use AlphaDecay in a script of your own (README.md)"
        )
    for key in CHANGING:
        values = sizes.get(key)
        if any(value not in NEUTRAL for value in (values if isinstance(values, list) else [values])):
            raise UserError(
                f"{where}: {key} is {shown(values)}, which a LLaMA does not have; the model would be another "
                "one without it: use AlphaDecay in a script of your own (README.md)"
            )
    method = quantisation_of(sizes)
    if method:
        raise UserError(
            f"{where}: quantization_config says that its weights are quantised ({method}); give "
            "the config of the model from before the quantisation"
        )


def differences(own: LlamaConfig, other: LlamaConfig) -> Iterator[tuple[str, Any, Any]]:
    """What makes LLaMAs of the same shapes compute other things: key, own value, the other's."""
    for key in FUNCTION:
        values = getattr(own, key, None), getattr(other, key, None)
        if values[0] != values[1]:
            yield (key, *values)
