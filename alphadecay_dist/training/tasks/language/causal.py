"""Configs of any causal language model that transformers itself can build, by ``model_type``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from alphadecay_dist.checkpoint.quantised import quantisation_of
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.tasks.language.hf_config import require_no_effect
from alphadecay_dist.training.tasks.language.llama import MOST_LAYERS, check_whole

TYPE = "model_type"
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
# What is not taken of a config: who wrote it and how, what a forward returns, how it is computed (the name of
# a kernel would be fetched), what other heads than a language model's need.
LEFT_OUT = re.compile(
    r"_(?!remove_final_layer_norm).*|architectures|auto_map|transformers_version|(torch_)?dtype|name_or_path|use_cache|return_dict"
    r"|output_(hidden_states|attentions)|.*implementation|.*kernels?(_config)?|id2label|label2id|num_labels"
    r"|problem_type|task_specific_params|summary_.*|tokenizer_class|prefix|finetuning_task|n_ctx|torchscript"
    r"|quantization_config|compression_config|is_encoder_decoder|tie_encoder_decoder|add_cross_attention"
    r"|cross_attention_hidden_size|is_decoder|chunk_size_feed_forward|model_type|use_bfloat16|pruned_heads|loss_type"
)
# Layers that see earlier positions alone, and keep nothing of what is behind: the rest are not attention.
LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
CLOSE = 0.85  # a key that is that near to a known one is a slip


def causal_config(name: str, values: Mapping[str, Any], seq_len: int) -> Any:
    """The config of a causal language model from the values of its JSON.

    Args:
        name: what errors call it.
        values: of a HF config.json, ``model_type`` among them.
        seq_len: what its positions have to suffice for.

    Raises:
        UserError: transformers does not know it, it is no causal language model of plain text, it is made of
            code or weights from elsewhere, or a value is missing, unknown or out of its range.
    """
    kind = values[TYPE]
    _require_plain(name, values)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(
            f"model {name}: model_type is {shown(kind)}, which transformers {transformers.__version__} does "
            "not know; give the config of an architecture that it has"
        )
    family = CONFIG_MAPPING[kind]
    _require_text(name, kind, family, values)
    known = family()
    taken = {key: value for key, value in values.items() if not LEFT_OUT.fullmatch(key)}
    _require_keys(name, known, values, taken)
    taken |= dict.fromkeys(_ids_beyond(known, values))
    config = AutoConfig.for_model(kind, **taken)
    config.use_cache = False
    _require_sizes(name, config, seq_len)
    return config


def causal_values(config: Any) -> dict[str, Any]:
    """The values of a JSON that gives the config back: all of them, for defaults change with versions."""
    values = {key: value for key, value in config.to_dict().items() if not LEFT_OUT.fullmatch(key)}
    return {TYPE: config.model_type} | values


def _require_plain(name: str, values: Mapping[str, Any]) -> None:
    """Refuse code and weights from elsewhere."""
    if values.get("auto_map"):
        raise UserError(
            f"model {name}: auto_map names code beside the weights, which is never run; remove it, if "
            f"transformers' own {shown(values[TYPE])} is the same model"
        )
    method = quantisation_of(values)
    if method:
        raise UserError(
            f"model {name}: quantization_config is {method}, expected none: quantised weights are not "
            "trained; remove it, for a model that is not quantised"
        )
    if int(transformers.__version__.split(".")[0]) < 5 and values.get("rope_parameters"):
        raise UserError(
            f"model {name}: rope_parameters is how transformers 5 writes it, and {transformers.__version__} "
            "is installed, which would pass it over; install 5, or give rope_theta and rope_scaling"
        )


def _require_text(name: str, kind: str, family: Any, values: Mapping[str, Any]) -> None:
    """Refuse what is no decoder of text alone."""
    if values.get("is_encoder_decoder", getattr(family(), "is_encoder_decoder", False)):
        raise UserError(f"model {name}: {kind} is an encoder-decoder, expected a decoder alone")
    parts = list(getattr(family, "sub_configs", ()))
    if parts:
        raise UserError(
            f"model {name}: {kind} is made of several models ({', '.join(parts)}), expected one of text "
            "alone; if its text_config is one, give that as a JSON of its own"
        )
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model {name}: transformers has no causal language model for {kind}")
    own = MODEL_FOR_CAUSAL_LM_MAPPING[family].__name__
    built = values.get("architectures") or [own]
    if own not in (built if isinstance(built, list) else [built]):
        raise UserError(
            f"model {name}: architectures is {shown(built)}, expected [{own!r}]; give the config of the "
            "model with its language model's head"
        )
    if values.get("add_cross_attention"):
        raise UserError(f"model {name}: add_cross_attention is set, expected a decoder alone")


def _require_keys(name: str, known: Any, values: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    """Refuse sizes left out, slips, and values that transformers would pass over, but that have an effect."""
    aliases: dict[str, str] = known.attribute_map
    takes = {*known.to_dict(), *aliases, *vars(known)}
    for key in SIZES:
        own = aliases.get(key, key)
        if own not in takes:
            raise UserError(
                f"model {name}: {values[TYPE]} has no {key}: models without attention, such as state-space "
                "models, are not trained"
            )
        if key not in values and own not in values:
            raise UserError(f"model {name}: has no {own}, which has no default here; add it")
    for key, value in values.items():
        if key in takes or key.startswith("rope_") or key not in taken or _is_read(key, values[TYPE], taken):
            continue
        near = difflib.get_close_matches(key, takes - values.keys(), 1, CLOSE)
        if near:
            raise UserError(f"model {name}: {key} is no value of {values[TYPE]}; did you mean {near[0]!r}?")
        require_no_effect(f"model {name}", key, value, values)


def _ids_beyond(known: Any, values: Mapping[str, Any]) -> list[str]:
    """Special tokens that the values do not name, and whose defaults the vocabulary does not have."""
    vocabulary = values.get("vocab_size")
    ids = {key: getattr(known, key, None) for key in SPECIAL if key not in values}
    return [
        key
        for key, id in ids.items()
        if isinstance(vocabulary, int) and isinstance(id, int) and id >= vocabulary
    ]


def _is_read(key: str, kind: str, taken: Mapping[str, Any]) -> bool:
    """Whether a config makes something of a number that it has no field for, such as one's older name."""
    value = taken[key]
    if not isinstance(value, int | float):
        return False
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2
    try:
        found, changed = (vars(AutoConfig.for_model(kind, **{**taken, key: own})) for own in (value, other))
    except Exception:  # transformers has something against the values, and says so where they are all taken
        return False
    return any(found[own] != changed[own] for own in found.keys() & changed.keys() - {key})


def _require_sizes(name: str, config: Any, seq_len: int) -> None:
    for key in SIZES:
        check_whole(name, config.attribute_map.get(key, key), getattr(config, key, None))
    layers = config.num_hidden_layers
    if layers > MOST_LAYERS:  # each is built, if without storage
        raise UserError(f"model {name}: num_hidden_layers is {layers}, expected {MOST_LAYERS} or less")
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - {*LAYERS})
    if others:
        raise UserError(
            f"model {name}: layer_types has {others[0]!r}, expected attention alone: state-space and linear "
            "layers are not trained"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and seq_len > positions:
        own = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        raise UserError(f"train.seq_len: found {seq_len}, above {own} {positions} of {name}")
