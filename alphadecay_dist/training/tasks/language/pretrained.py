"""Initial weights from a HF checkpoint: those of the model that is trained, all of them and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from alphadecay_dist.checkpoint.foreign import CONFIG, ForeignTensor, foreign_tensors, read_config
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.tasks.language.hf_config import function_of, require_llama
from alphadecay_dist.training.tasks.language.model import TAKEN, config_of, values_of

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# What torch.compile, FSDP1 and activation checkpointing put into names; and DDP, Lightning before them.
INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OUTER = ("module", "model")
# Tables that older versions of transformers saved, and that the config gives again.
TABLES = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
# What two configs may differ in: the same weights are the same function.
FREE = ("initializer_range", "attention_dropout", "pad_token_id")


def values_from(folder: str, shapes: LlamaForCausalLM, trust: bool) -> Callable[[str], Tensor]:
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
        _require_all(homes, shapes, folder)
        _require_no_others(homes, shapes, folder)
    except UserError as error:
        raise UserError(f"--init_from {error}") from None
    return lambda name: homes[name].read().float()


def _require_same_function(path: Path, config: LlamaConfig) -> None:
    """Refuse weights whose own config makes another function of them than the model's does."""
    read = read_config(path)
    if read is None:
        return
    require_llama(str(path), read, TAKEN)
    theirs = function_of(values_of(config_of(f"of {path}", read, 1)), FREE)
    for key, value in function_of(values_of(config), FREE).items():
        if theirs[key] != value:
            raise UserError(
                f"{path}: {key} is {shown(theirs[key])}, that of model.name is {shown(value)}: another "
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


def _require_all(homes: Mapping[str, ForeignTensor], shapes: LlamaForCausalLM, folder: str) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in shapes.named_parameters()}
    missing = [name for name in expected if name not in homes]
    if missing:
        raise UserError(
            f"{folder}: has no {missing[0]}; {len(missing)} of the model's {len(expected)} tensors are not "
            f"there; {_why_missing(homes, list(expected))}"
        )
    for name, shape in expected.items():
        if homes[name].shape != shape:
            raise UserError(
                f"{folder}: {name} has shape {homes[name].shape}, the model needs {shape}; give model.name "
                "the checkpoint's own config.json"
            )


def _why_missing(homes: Mapping[str, ForeignTensor], expected: Sequence[str]) -> str:
    """What to do about parameters that are not in a checkpoint."""
    if any(".lora_" in name for name in homes):
        return "it is an adapter: merge it with its model (peft: merge_and_unload()), and give the result"
    prefixes = _prefixes(homes, expected)
    if prefixes:
        before = " and ".join(shown(prefix) for prefix in prefixes[:3])
        return f"their names begin with {before}: save the state dict of that module alone"
    if not any(name in homes for name in expected):
        own = shown(next(iter(homes)))
        return f"its own names are like {own}: give weights as LlamaForCausalLM saves them"
    return "a file of the checkpoint is missing, or model.name is not its own config.json"


def _require_no_others(homes: Mapping[str, ForeignTensor], shapes: LlamaForCausalLM, folder: str) -> None:
    """Refuse tensors that would be dropped; tables may be, and a head that is the embedding once more."""
    expected = dict(shapes.named_parameters())
    others = [name for name in homes if name not in expected and not TABLES.fullmatch(name)]
    if HEAD in others and shapes.config.tie_word_embeddings:
        if not torch.equal(homes[HEAD].read(), homes[EMBEDDING].read()):
            raise UserError(
                f"{folder}: {HEAD} is not equal to {EMBEDDING}, which model.name ties to it; set "
                "tie_word_embeddings to false there"
            )
        others.remove(HEAD)
    if others:
        biases = all(name.endswith(".bias") for name in others)
        remedy = (
            "set attention_bias or mlp_bias in model.name's JSON" if biases else "give the weights of a LLaMA"
        )
        raise UserError(
            f"{folder}: has {len(others)} tensors that the model of model.name does not have: "
            f"{', '.join(shown(name) for name in others[:3])}; if it is a LLaMA, {remedy}"
        )
