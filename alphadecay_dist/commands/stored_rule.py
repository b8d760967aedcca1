"""Which stored tensors a training run would tune: by the model that their config.json names, else by name."""

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
from alphadecay_dist.params.fused import Cut
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.params.tuned_rule import cut_of, is_stack, large_enough, reason_by_name

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
EMBEDDING = re.compile(r"(.*_)?(wte|wpe|emb|embed|embeds|embedding|embeddings|embed_tokens|embed_positions)")


@dataclass(frozen=True)
class StoredMatrix:
    """A stored tensor that is tuned, alone or with others that training joins.

    Attributes:
        stored: the tensor.
        weight: name of the weight that it is in training, which has one decay.
        cut: how its matrices are cut into parts.
    """

    stored: StoredTensor
    weight: str
    cut: Cut | None

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Its matrices by name, one in memory at a time."""
        for name, unit in self.stored.units():
            if self.cut is None:
                yield name, unit
            else:
                yield from ((f"{name}.{part}", matrix) for part, matrix in self.cut.parts(unit))


def tuned_tensors(weights: StoredWeights, *, uncut: bool) -> list[StoredMatrix]:
    """The tensors that training would tune, in the files' order.

    Args:
        weights: of a model. Where transformers knows the model of the config.json beside them, and they are
            that model's, it decides; without it names and shapes do.
        uncut: keep fused ones whole, as the released code does.
    """
    found = _by_model(weights)
    if found is None:
        found = _by_name(weights)
        if weights.config is not None:
            notice(
                f"{weights.path}: not the weights of its config.json's model as transformers builds it; "
                "names and shapes tell what is tuned, which training may cut otherwise"
            )
    return [replace(own, cut=None) for own in found] if uncut else found


def _by_name(weights: StoredWeights) -> list[StoredMatrix]:
    shapes = {_weight_name(tensor.name): tensor.shape for tensor in weights.tensors}
    found = []
    for tensor in filter(_named_as_tuned, weights.tensors):
        name, shape = _weight_name(tensor.name), tensor.shape
        # A file does not tell whether a matrix is (out, in) or (in, out).
        transposed = len(shape) == 2 and shape[1] == 3 * shape[0]
        cut = cut_of(name, shape, weights.heads, shapes, transposed=transposed)
        own = StoredMatrix(tensor, name, cut)
        if large_enough(_part_shapes(own)):
            found.append(own)
    return found


def _named_as_tuned(tensor: StoredTensor) -> bool:
    """Whether names and dimensions are those of a weight that training tunes, large or small."""
    name = _weight_name(tensor.name)
    if reason_by_name(name) is not None:
        return False
    is_matrix = tensor.name.endswith(MATRICES) and len(tensor.shape) in (2, 4)
    embeds = EMBEDDING.fullmatch(name.rsplit(".", 1)[-1]) is not None
    return is_stack(name, tensor.shape) or (is_matrix and not embeds)


def _by_model(weights: StoredWeights) -> list[StoredMatrix] | None:
    """By the model of the config.json; None without one, or where these are not its weights."""
    model = _model_of(weights.config, len(weights.tensors)) if weights.config is not None else None
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
            if _named_as_tuned(tensor) and not _ignored(model, target):
                return None
            continue
        name = _weight_name(target)
        if name in tuned:
            sizes[name] += math.prod(tensor.shape)
            found.append(StoredMatrix(tensor, name, _cut_in_file(tuned[name], tensor.shape)))
    if not found or any(sizes[name] > math.prod(tuned[name].shape) for name in tuned):
        return None
    return found


def _cut_in_file(weight: Weight, shape: Sequence[int]) -> Cut | None:
    """The weight's cut where a tensor has the shape that is cut; its parts may be stored one by one."""
    if weight.cut is None or tuple(shape[-2:]) == tuple(weight.unit_shape):
        return weight.cut
    if tuple(shape[:-3:-1]) == tuple(weight.unit_shape):  # stored transposed
        return replace(weight.cut, axis=1 - weight.cut.axis)
    return None


def config_in(path: Path) -> Any:
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


def _model_of(path: Path, tensors: int) -> nn.Module | None:
    """The model of a config.json; None where transformers does not know it, or is missing.

    Args:
        path: of the config.
        tensors: how many the files hold; a config of more layers is not theirs.
    """
    try:
        config = config_in(path)
        layers = getattr(config, "num_hidden_layers", 0)
        return None if isinstance(layers, int) and layers > tensors else on_meta(config)
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


def _part_shapes(own: StoredMatrix) -> list[tuple[int, ...]]:
    shape = own.stored.shape
    unit = shape[1:] if len(shape) == 3 else shape
    return [unit] if own.cut is None else [*own.cut.shapes(unit)]


def _weight_name(parameter: str) -> str:
    return parameter.removesuffix(".weight")
