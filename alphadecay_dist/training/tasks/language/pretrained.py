"""Initial weights from a HF checkpoint: those of the model that is trained, all of them and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from alphadecay_dist.checkpoint.foreign import CONFIG, ForeignTensor, foreign_tensors, read_config
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.tasks.language.causal import TYPE
from alphadecay_dist.training.tasks.language.conversion import Conversion, Source
from alphadecay_dist.training.tasks.language.hf_config import MODEL_TYPES, function_of, require_llama
from alphadecay_dist.training.tasks.language.llama import TAKEN
from alphadecay_dist.training.tasks.language.model import config_of, values_of

# What torch.compile, FSDP1 and activation checkpointing put into names; and DDP, Lightning before them.
INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OUTER = ("module", "model")
# Tables that older versions of transformers saved, and that the config gives again.
TABLES = re.compile(r"^(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
# What two configs may differ in: the same weights are the same function.
FREE = re.compile(
    r"initializer_.*|.*drop(out)?|.*_token_id|router_aux_loss_coef|router_jitter_noise|output_router_logits"
)


def values_from(folder: str, shapes: Any, trust: bool) -> Callable[[str], Tensor]:
    """Initial values from the files of a HF checkpoint directory.

    Args:
        folder: the directory, with safetensors files, or pickles; or one such file.
        shapes: the model.
        trust: whether pickles may be opened.

    Returns:
        The fp32 value of a parameter by its name.

    Raises:
        UserError: no such files, or not all of them; pickles without trust; quantised weights; a config.json
            beside them of another architecture or function than the model's; a parameter missing, or one of
            another shape; tensors that the model has no place for.
    """
    try:
        tensors = foreign_tensors(Path(folder), trust, "--checkpoint.trust")
        _require_same_function(tensors[0].file.parent / CONFIG, shapes.config)
        homes = _homes(tensors, [name for name, _ in shapes.named_parameters()])
        conversion = Conversion(shapes)
        sources = conversion.sources(list(homes))
        _require_all(homes, sources, conversion, shapes, folder)
        _require_no_others(homes, sources, shapes, folder)
    except UserError as error:
        raise UserError(f"--init_from {error}") from None
    return lambda name: conversion.value(name, sources[name], lambda part: homes[part].read()).float()


def _require_same_function(path: Path, config: Any) -> None:
    """Refuse weights whose own config makes another function of them than the model's does."""
    read = read_config(path)
    if read is None:
        return
    is_llama = type(config) is LlamaConfig
    if read.get(TYPE) not in ((None, *MODEL_TYPES) if is_llama else (config.model_type,)):
        raise UserError(
            f"{path}: model_type is {shown(read.get(TYPE))}, that of model.name is {config.model_type!r}; "
            f"give --model.name={path}"
        )
    if is_llama:
        require_llama(str(path), read, TAKEN)
        read = {key: value for key, value in read.items() if key != TYPE}  # it is one, by whatever name
    theirs, ours = values_of(config_of(f"of {path}", read, 1)), values_of(config)
    free = [key for key in ours if FREE.fullmatch(key)]
    found = function_of(theirs, free)
    for key, value in function_of(ours, free).items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: {key} is {shown(found.get(key))}, that of model.name is {shown(value)}: another "
                f"function of the same weights; give --model.name={path}"
            )


def _homes(tensors: Sequence[ForeignTensor], expected: Sequence[str]) -> dict[str, ForeignTensor]:
    """The tensors by the names that the model has for them: without what wrappers put there."""
    names = [".".join(part for part in tensor.name.split(".") if part not in INNER) for tensor in tensors]
    prefixes = _prefixes(names, expected)
    strip = prefixes[0] if len(prefixes) == 1 and set(prefixes[0].split(".")) <= {*OUTER, ""} else ""
    homes: dict[str, ForeignTensor] = {}
    for name, tensor in zip(names, tensors, strict=True):
        other = homes.setdefault(name.removeprefix(strip), tensor)
        if other is not tensor:
            raise UserError(
                f"{tensor.file}: {shown(other.name)} and {shown(tensor.name)} are two values of one weight; "
                "save the state dict of one model alone"
            )
    return homes


def _prefixes(names: Iterable[str], expected: Sequence[str]) -> list[str]:
    """What stands before the names of all parameters; several where the model is there several times."""
    there, first = set(names), expected[0]
    ends = sorted(name.removesuffix(first) for name in there if f".{name}".endswith(f".{first}"))
    return [end for end in ends if all(end + name in there for name in expected)]


def _require_all(
    homes: Mapping[str, ForeignTensor],
    sources: Mapping[str, Source],
    conversion: Conversion,
    shapes: Any,
    folder: str,
) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in shapes.named_parameters()}
    missing = [name for name in expected if name not in sources]
    if missing:
        raise UserError(
            f"{folder}: has no {missing[0]}; {len(missing)} of the model's {len(expected)} tensors are not "
            f"there; {_why_missing(sources, list(expected), type(shapes).__name__)}"
        )

    def without_storage(part: str) -> Tensor:
        return torch.empty(homes[part].shape, device="meta")

    for name, shape in expected.items():
        parts = sources[name].parts
        try:
            found = tuple(conversion.value(name, sources[name], without_storage).shape)
        except Exception as error:  # of transformers' conversion, or of torch
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: {parts[0]} and {len(parts) - 1} others do not make {name}: {reason}; a file of "
                "the checkpoint is missing"
            ) from None
        if found != shape:
            raise UserError(
                f"{folder}: {name} has shape {found}, the model needs {shape}; give model.name "
                "the checkpoint's own config.json"
            )


def _why_missing(found: Mapping[str, Source], expected: Sequence[str], kind: str) -> str:
    """What to do about parameters that are not in a checkpoint."""
    if any(".lora_" in name for name in found):
        return "it is an adapter: merge it with its model (peft: merge_and_unload()), and give the result"
    prefixes = _prefixes(found, expected)
    if prefixes:
        before = " and ".join(shown(prefix) for prefix in prefixes[:3])
        return f"their names begin with {before}: save the state dict of that module alone"
    if not any(name in found for name in expected):
        own = shown(next(iter(found)))
        return f"its own names are like {own}: give weights as {kind} saves them"
    return "a file of the checkpoint is missing, or model.name is not its own config.json"


def _require_no_others(
    homes: Mapping[str, ForeignTensor], sources: Mapping[str, Source], shapes: Any, folder: str
) -> None:
    """Refuse tensors that would be dropped; tables may be, and a head that is the embedding once more."""
    parameters = dict(shapes.named_parameters(remove_duplicate=False))
    once = dict(shapes.named_parameters())
    twice = [name for name in sources if name in parameters and name not in once]
    for name in twice:
        other = next(own for own, parameter in once.items() if parameter is parameters[name])
        stored, kept = (homes[sources[own].parts[0]] for own in (name, other))
        if not torch.equal(stored.read(), kept.read()):
            raise UserError(
                f"{folder}: {name} is not equal to {other}, which model.name ties to it; set "
                "tie_word_embeddings to false there"
            )
    unused = [*(shapes._keys_to_ignore_on_load_unexpected or ()), TABLES.pattern]
    others = [
        name
        for name in sources
        if name not in parameters and not any(re.search(pattern, name) for pattern in unused)
    ]
    if others:
        biases = all(name.endswith(".bias") for name in others)
        kind = "a LLaMA" if type(shapes.config) is LlamaConfig else type(shapes).__name__
        remedy = (
            "set attention_bias or mlp_bias in model.name's JSON" if biases else f"give the weights of {kind}"
        )
        raise UserError(
            f"{folder}: has {len(others)} tensors that the model of model.name does not have: "
            f"{', '.join(shown(name) for name in others[:3])}; if it is {kind}, {remedy}"
        )
