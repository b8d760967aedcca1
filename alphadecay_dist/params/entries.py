"""Model -> every trained parameter once: its name, its whole shape, and why not to tune it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from alphadecay_dist.params.tuned_rule import EMBEDDING, is_stack, reason_by_name

VECTOR = "a vector"
JOINED = "joined expert stack not recognised"
STACKED = "matrices in one parameter that no name tells apart"
CONVOLUTION = "a convolution, but no Conv2d's weight"
_TUNED_BY_DEFAULT = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


@dataclass(frozen=True)
class Entry:
    """A trained parameter.

    Attributes:
        name: dotted name of its module if it is the module's ``weight``, else its own.
        module: the module that it belongs to.
        attribute: its name in that module.
        parameter: the parameter itself; it may be empty, or only a shard.
        shape: shape of the whole parameter.
        embeds: whether it belongs to an embedding, perhaps tied with a head.
    """

    name: str
    module: nn.Module
    attribute: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    embeds: bool


def entries(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Entry]:
    """Every trained parameter of a model, once, in the model's order.

    Args:
        model: any module; its parameters may be sharded.
        modules: its modules by name, see :func:`alphadecay_dist.params.wrappers.named_modules`.
    """
    embeddings = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    flat = _flat_shapes(model)
    seen: set[int] = set()
    for module_name, module in modules.items():
        for attribute, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            name = module_name if attribute == "weight" else f"{module_name}.{attribute}".removeprefix(".")
            shape = _whole_shape(module, attribute, parameter, flat)
            yield Entry(name, module, attribute, parameter, shape, id(parameter) in embeddings)


def whole_shapes(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of the three-dimensional parameters, also frozen ones, by the names of :func:`entries`."""
    flat = _flat_shapes(model)
    found = {}
    for module_name, module in modules.items():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = module_name if attribute == "weight" else f"{module_name}.{attribute}".removeprefix(".")
            found[name] = _whole_shape(module, attribute, parameter, flat)
    return {name: shape for name, shape in found.items() if len(shape) == 3}


def unfit(entry: Entry) -> str | None:
    """Why a parameter has no matrices to analyse, even if it is named; None if it may have some."""
    if entry.embeds or isinstance(entry.module, nn.Embedding):
        return EMBEDDING
    if not entry.parameter.is_floating_point():
        return "not real numbers"
    if len(entry.shape) < 2:
        return VECTOR
    if isinstance(entry.module, nn.modules.conv._ConvNd):
        return None if isinstance(entry.module, nn.Conv2d) and entry.attribute == "weight" else CONVOLUTION
    if len(entry.shape) in (2, 3):
        return None
    return f"{len(entry.shape)} dimensions"


def not_by_default(entry: Entry, modules: Mapping[str, nn.Module]) -> str | None:
    """Why a parameter is tuned only if it is named; None if it is tuned by default."""
    reason = reason_by_name(entry.name)
    if reason is not None:
        return reason
    own = modules.get(entry.name), modules.get(entry.name.rpartition(".")[0])
    if any(isinstance(module, _TUNED_BY_DEFAULT) or is_conv1d(module) for module in own):
        return None
    if is_stack(entry.name, entry.shape) or joined_experts(entry):
        return None
    if isinstance(entry.module, nn.utils.parametrize.ParametrizationList):
        kinds = (type(kind).__name__.lstrip("_") for kind in entry.module)
        return f"parametrized by {', '.join(_PARAMETRIZATIONS.get(kind, kind) for kind in kinds)}"
    if "expert" in entry.name:
        return JOINED
    if len(entry.shape) == 3:
        return STACKED
    return f"neither Linear, Conv2d nor Conv1D, but {type(entry.module).__name__}"


def is_conv1d(module: nn.Module | None) -> bool:
    """Whether it is transformers' Conv1D, whose weight is (in, out); does not load transformers."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
        for kind in type(module).__mro__
    )


def joined_experts(entry: Entry) -> int | None:
    """How many experts' matrices (m, n) a parameter (experts * m, n) joins, as in DBRX; else None.

    The module must have the number of experts, and the name of the parameter must contain "expert".
    """
    count = getattr(entry.module, "moe_num_experts", None)
    if not isinstance(count, int) or len(entry.shape) != 2 or "expert" not in entry.name or count < 2:
        return None
    rows, rest = divmod(entry.shape[0], count)
    return count if rest == 0 and rows > 1 else None


_PARAMETRIZATIONS = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm", "Orthogonal": "orthogonal"}


def _whole_shape(
    module: nn.Module, name: str, parameter: nn.Parameter, flat: Mapping[int, tuple[int, ...]]
) -> tuple[int, ...]:
    """The shape before sharding; from the module if it knows, as an engine may have emptied the parameter."""
    if name == "weight" and isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if name == "weight" and isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    if id(parameter) in flat:
        return flat[id(parameter)]
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ds_shape: where DeepSpeed keeps it


def _flat_shapes(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """Whole shapes of the parameters in FSDP1's flat parameters, by the id of the original parameter."""
    found: dict[int, tuple[int, ...]] = {}
    for module in FullyShardedDataParallel.fsdp_modules(model):
        handle: Any = module._handle
        if handle is not None and handle.flat_param._params is not None:
            flat = handle.flat_param
            found |= {
                id(parameter): tuple(shape)
                for parameter, shape in zip(flat._params, flat._shapes, strict=True)
                if math.prod(shape)
            }
    return found
