"""The weights of a model on disk as the rule of what is tuned knows them: by their config.json or names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphadecay_dist.commands.weight_files import StoredTensor, StoredWeights
from alphadecay_dist.notices import notice
from alphadecay_dist.params.entries import linears
from alphadecay_dist.params.fused import Cut
from alphadecay_dist.params.heads import Attention, Known, attention_of, attentions
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.params.tuned_rule import (
    CONV1D,
    CONV2D,
    CONVOLUTION,
    EMBEDDING,
    LINEAR,
    Described,
    Tuned,
    cut_of,
    large_enough,
    not_by_default,
    unfit,
)
from alphadecay_dist.params.wrappers import named_modules

# What torch's Linear, Conv2d and MultiheadAttention name their matrices, under weight norm too.
MATRICES = (
    ".weight",
    ".weight_v",
    ".weight_orig",
    ".in_proj_weight",
    ".q_proj_weight",
    ".k_proj_weight",
    ".v_proj_weight",
)
EMBEDDING_NAME = re.compile(
    r"(.*_)?(wte|wpe|emb|embed|embeds|embedding|embeddings|embed_tokens|embed_positions)"
)


@dataclass(frozen=True)
class StoredWeight(Tuned):
    """A stored tensor that is tuned, alone or with others that training joins to the weight of that name.

    Attributes:
        stored: the tensor, whose shape it has.
    """

    stored: StoredTensor

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Its matrices by name, one in memory at a time."""
        for name, unit in self.stored.units():
            yield from self.cut_up(name, unit)


@dataclass(frozen=True)
class StoredModel:
    """What is tuned of a model on disk.

    Attributes:
        tuned: the tensors that training would tune by default, in the files' order.
        linears: see :func:`alphadecay_dist.params.tuned_rule.released_ends`.
        attention: see :func:`alphadecay_dist.params.heads.attentions`.
    """

    tuned: list[StoredWeight]
    linears: list[str]
    attention: Known


def tuned_tensors(weights: StoredWeights) -> StoredModel:
    """What training would tune of a model on disk.

    Where transformers knows the model of the config.json beside the weights, and they are that model's, its
    modules say what holds each weight; without it names and shapes do.
    """
    found = _by_model(weights)
    if found is not None:
        return found
    if weights.config is not None:
        notice(
            f"{weights.path}: not the weights of its config.json's model as transformers builds it; "
            "names and shapes tell what is tuned, which training may cut otherwise"
        )
    return _by_name(weights)


def _by_name(weights: StoredWeights) -> StoredModel:
    pairs = [(tensor, _described(tensor)) for tensor in weights.tensors]
    shapes = {own.name: own.shape for _, own in pairs}
    found = [
        StoredWeight(own.name, own.shape, cut_of(own, weights.heads, shapes), tensor)
        for tensor, own in pairs
        if _by_default(own)
    ]
    linear = [own.name for _, own in pairs if own.kind in (LINEAR, CONV2D)]
    conv1d = {attention_of(own.name) for _, own in pairs if own.kind == CONV1D}  # as the fused one, so is o
    heads = weights.heads

    def attention(name: str) -> Attention | None:
        return None if heads is None else Attention.of_config(heads, int(attention_of(name) in conv1d))

    return StoredModel([weight for weight in found if large_enough(weight)], linear, attention)


def _by_default(own: Described) -> bool:
    """Whether it is tuned by default, large or small."""
    return unfit(own) is None and not_by_default(own) is None


def _described(tensor: StoredTensor) -> Described:
    """A tensor as far as its name and shape tell what holds it."""
    name, shape = _weight_name(tensor.name), tensor.shape
    if len(shape) not in (2, 4) or not tensor.name.endswith(MATRICES):
        kind = "not named like a matrix"
    elif EMBEDDING_NAME.fullmatch(name.rsplit(".", 1)[-1]):
        kind = EMBEDDING
    elif len(shape) == 4:
        kind = CONV2D if tensor.name.endswith(".weight") else CONVOLUTION
    else:  # a file does not tell whether a matrix is (out, in) or (in, out)
        kind = CONV1D if shape[1] == 3 * shape[0] else LINEAR
    return Described(name, shape, kind, experts=0)


def _by_model(weights: StoredWeights) -> StoredModel | None:
    """By the model of the config.json; None without one, or if these are not its weights."""
    model = _model_of(weights)
    if model is None:
        return None
    targets = _targets(model, [tensor.name for tensor in weights.tensors])
    known = model.state_dict()
    tuned = {weight.name: weight for weight in tuned_weights(model)}
    sizes: dict[str, int] = dict.fromkeys(tuned, 0)
    found = []
    for tensor in weights.tensors:
        target = targets[tensor.name]
        if target not in known:
            if _by_default(_described(tensor)) and not _ignored(model, target):
                return None
            continue
        name = _weight_name(target)
        if name in tuned:
            sizes[name] += math.prod(tensor.shape)
            found.append(StoredWeight(name, tensor.shape, _cut_in_file(tuned[name], tensor.shape), tensor))
    if not found or any(sizes[name] > math.prod(tuned[name].shape) for name in tuned):
        return None
    return StoredModel(found, linears(named_modules(model)), attentions(model))


def _cut_in_file(weight: Weight, shape: Sequence[int]) -> Cut | None:
    """The weight's cut where a tensor has the shape that is cut; its parts may be stored one by one."""
    if weight.cut is None or tuple(shape[-2:]) == tuple(weight.unit_shape):
        return weight.cut
    if tuple(shape[:-3:-1]) == tuple(weight.unit_shape):  # stored transposed
        return replace(weight.cut, axis=1 - weight.cut.axis)
    return None


def config_in(path: Path | None) -> Any:
    """A HF config, from its file or the directory that holds it; no code that it names is run.

    Raises:
        OSError, ValueError, KeyError, ImportError: transformers cannot read it.
    """
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def on_meta(config: Any) -> nn.Module:
    """The model that a HF config names, else its causal language model, without storage.

    Raises:
        OSError, ValueError, KeyError, ImportError: transformers cannot build it.
    """
    import transformers

    named = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):  # a kernel that the config names would be fetched, and is not needed
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            kind: Any = named
            return kind._from_config(config, attn_implementation="eager")
        return transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )


def _model_of(weights: StoredWeights) -> nn.Module | None:
    """The model of a config.json, or of a run; None where transformers does not know it, or is missing."""
    if weights.config is None and weights.values is None:
        return None
    try:
        if weights.values is not None:
            from transformers import AutoConfig

            return on_meta(AutoConfig.for_model(**weights.values))
        config = config_in(weights.config)
        layers = getattr(config, "num_hidden_layers", 0)
        # A config of more layers than there are tensors is not theirs.
        return None if isinstance(layers, int) and layers > len(weights.tensors) else on_meta(config)
    except Exception:  # a config may hold anything, and then names decide
        return None


def _targets(model: Any, names: Sequence[str]) -> dict[str, str]:
    """Names in the model by names in its files, as transformers loads them: experts joined, parts renamed."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:  # before version 5 names in files were those of the model
        return {name: name for name in names}
    transforms = get_model_conversion_mapping(model)
    renamings = [own for own in transforms if isinstance(own, WeightRenaming)]
    converters = [own for own in transforms if isinstance(own, WeightConverter)]
    known = model.state_dict()
    return {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, known)[0]
        for name in names
    }


def _ignored(model: Any, name: str) -> bool:
    """Whether transformers expects a tensor that the model does not have, and passes it over."""
    return any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected or ())


def _weight_name(parameter: str) -> str:
    return parameter.removesuffix(".weight")
