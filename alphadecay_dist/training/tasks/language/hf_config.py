"""Whether a model's JSON, often another's config.json, describes the LLaMA that is built from it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from alphadecay_dist.checkpoint.quantised import quantisation_of
from alphadecay_dist.errors import UserError, shown

# Model types that are LLaMA's architecture, and what their configs must say for it: defaults differ.
MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": ("sliding_window", "num_key_value_heads"),
}
ARCHITECTURES = ("llamaforcausallm", "mistralforcausallm")
# Keys that change a model where their value is not 1, and those that do where it is not null, false or 0.
FACTORS = re.compile(
    r"(embedding|residual|logits?|lm_head|output)_multiplier"
    r"|(?!attention|attn).*_scal(e|ing)|.*scaling_factor|scale_(emb|depth)"
    r"|partial_rotary_factor|rotary_(pct|fraction)"
)
SWITCHES = re.compile(
    r".*multipliers?|(attention|attn)_scal(e|ing)|query_pre_attn_scalar|mup_.*|.*softcap(ping)?"
    r"|.*bias|.*norms?|.*_norm_(type|before|after)|clip_qkv|.*dropout|.*_pdrop"
    r"|.*experts(_per_tok(en)?)?|moe_.*|(q|kv)_lora_rank|num_nextn_predict_layers|pruned_heads"
    r"|.*sliding_window|.*attention_window|use_bidirectional_attention|.*parallel_(residual|attn|block)"
    r"|(use_)?alibi|no_rope_layers?|no_rope_layer_interval|rope_interleaved"
)
# Names that other families have for what is taken.
OTHER_NAMES = {
    "activation_function": "hidden_act",
    "hidden_activation": "hidden_act",
    "layer_norm_eps": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
    "norm_eps": "rms_norm_eps",
    "norm_epsilon": "rms_norm_eps",
    "rotary_base": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "num_kv_heads": "num_key_value_heads",
    "n_kv_heads": "num_key_value_heads",
}


def require_llama(source: str, config: Mapping[str, Any], taken: Iterable[str]) -> None:
    """Refuse a config of another architecture, or one with values that would be dropped but have an effect.

    Args:
        source: what errors call it.
        config: the values of the JSON, with one of MODEL_TYPES, or without, as ours.
        taken: keys that the model is built from.

    Raises:
        UserError: it describes another model.
    """
    kind = config.get("model_type")
    built = config.get("architectures") or []
    for name in built if isinstance(built, list) else [built]:
        if not isinstance(name, str) or name.lower() not in ARCHITECTURES:
            raise UserError(
                f"{source}: architectures has {shown(name)}, expected 'LlamaForCausalLM', as "
                "model_type names no other; give the config of a LLaMA with its head, or add the model_type"
            )
    for key in MODEL_TYPES.get(kind, ()) if kind else ():
        if key not in config:
            raise UserError(f"{source}: has no {key}, which a {kind} needs here; add it")
    method = quantisation_of(config)
    if method:
        raise UserError(
            f"{source}: quantization_config is {method}, expected none: quantised weights are not trained; "
            "remove it, for a model that is not quantised"
        )
    for key, value in config.items():
        if key not in tuple(taken):
            require_no_effect(source, key, value, config)


def require_no_effect(source: str, key: str, value: Any, config: Mapping[str, Any]) -> None:
    """Refuse a key that is not taken, and is known to change a model.

    Raises:
        UserError: its value has an effect.
    """
    own = OTHER_NAMES.get(key)
    if own is not None and value is not None and config.get(own) != value:
        raise UserError(f"{source}: {key} is {shown(value)}, which is not read; give it as {own}")
    factor = FACTORS.fullmatch(key) is not None
    effect = bool(value) and not (factor and value == 1)
    if key == "layer_types":
        effect = any(kind != "full_attention" for kind in value) if isinstance(value, list) else bool(value)
    elif key.endswith("sliding_window") and effect:
        effect = config.get("use_sliding_window") is not False and not wide(value, config)
    elif not factor and not SWITCHES.fullmatch(key):
        return
    if effect:
        raise UserError(
            f"{source}: {key} is {shown(value)}, which the model that is trained does not have; remove it, "
            "where it has no effect on the model"
        )


def wide(window: Any, config: Mapping[str, Any]) -> bool:
    """Whether no position is outside of a sliding window; None is no window."""
    if window is None:
        return True
    positions = config.get("max_position_embeddings", 2048)
    return isinstance(window, int) and isinstance(positions, int) and window >= positions


def function_of(values: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The values of a config that decide what its weights compute.

    Args:
        values: as :func:`alphadecay_dist.training.tasks.language.model.values_of` has them.
        free: keys of others.
    """
    found = {key: value for key, value in values.items() if key not in free}
    # Some kinds of scaling read the number of positions, and so may other architectures.
    if "model_type" not in found and found.get("rope_scaling") is None:
        found.pop("max_position_embeddings", None)
    if found.get("hidden_act") == "swish":
        found["hidden_act"] = "silu"  # two names of one function
    return found
