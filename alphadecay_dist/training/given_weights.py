"""Initial weights from a HF checkpoint: all of the model's, of the same model, and nothing beside them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from alphadecay_dist.checkpoint.foreign import CONFIG, ForeignTensor, foreign_tensors, read_config
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.architecture import differences, require_llama
from alphadecay_dist.training.model import llama_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TABLE = ".rotary_emb.inv_freq"  # how names of tables that a LLaMA computes itself end
LORA = ".lora_"


def values_from(folder: str, shapes: nn.Module, trust: bool) -> Callable[[str], Tensor]:
    """Initial values from the files of a HF checkpoint directory.

    Args:
        folder: the directory, with safetensors files, or pickles.
        shapes: the model, with its config.
        trust: whether pickles may be opened.

    Raises:
        UserError: no such files, quantised ones, those of another model, a parameter missing or too many, or
            one of another shape; pickles without trust.
    """
    option = f"--init_from {folder}"
    path = Path(folder)
    config_file = (path if os.path.isdir(path) else path.parent) / CONFIG
    try:
        _require_same_model(config_file, shapes.config)
        tensors = foreign_tensors(path, trust, "--checkpoint.trust")
    except UserError as error:
        raise UserError(f"--init_from {error}") from None
    homes = {tensor.name: tensor for tensor in tensors}
    expected = {name: tuple(parameter.shape) for name, parameter in shapes.named_parameters()}
    for name, shape in expected.items():
        if name not in homes:
            raise UserError(f"{option}: {_why_missing(name, homes, expected)}")
        if homes[name].shape != shape:
            raise UserError(
                f"{option}: {name} has shape {homes[name].shape}, the model needs {shape}; "
                "give model.name the checkpoint's own config.json"
            )
    _require_no_more(option, homes, expected)
    return lambda name: homes[name].whole().float()


def _require_same_model(config_file: Path, own: LlamaConfig) -> None:
    """Refuse weights whose config.json describes another model than the one that is built."""
    sizes = read_config(config_file)
    if sizes is None:
        return
    require_llama(sizes, str(config_file))
    try:
        other = llama_of(sizes)
    except Exception:  # a config that transformers cannot build says nothing; shapes are compared
        return
    for key, value, theirs in differences(own, other):
        raise UserError(
            f"{config_file}: {key} is {shown(theirs)}, the model's is {shown(value)}; give model.name the "
            "checkpoint's own config.json"
        )


def _why_missing(name: str, found: Collection[str], expected: Collection[str]) -> str:
    """Why a parameter is not among the tensors, and what to do."""
    if any(LORA in other for other in found):
        return "holds an adapter (LoRA), expected a whole model; merge it into its model, and give the result"
    prefixes = Counter(other.removesuffix(name) for other in found if other.endswith(f".{name}"))
    if prefixes:
        prefix, _ = prefixes.most_common(1)[0]
        return (
            f"its names begin with {shown(prefix)}, as in {shown(prefix + name)}, expected {shown(name)}; "
            "save the model without its wrapper"
        )
    if name == HEAD and EMBEDDING in found:
        return (
            f"has no {HEAD}, for its head is its embedding; give model.name a JSON with tie_word_embeddings"
        )
    missing = sum(other not in found for other in expected)
    return (
        f"has no tensor {shown(name)}, and {missing - 1} more of the model's {len(expected)} are not there; "
        "give all files of a checkpoint in Hugging Face's format"
    )


def _require_no_more(
    option: str, homes: Mapping[str, ForeignTensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse tensors that the model would go without; a tied head that is the embedding again is none."""
    more = [name for name in homes if name not in expected and not name.endswith(TABLE)]
    if more == [HEAD] and torch.equal(homes[HEAD].whole(), homes[EMBEDDING].whole()):
        return
    if more:
        raise UserError(
            f"{option}: {len(more)} tensors have no place in the model, the first is {shown(more[0])} in "
            f"{homes[more[0]].file.name}; give the checkpoint of a LLaMA, and model.name its own config.json"
        )
