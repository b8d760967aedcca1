"""Model -> every trained parameter once, as the rule of what is tuned knows it: name, whole shape, kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from alphadecay_dist.params.tuned_rule import (
    CONV1D,
    CONV2D,
    CONVOLUTION,
    EMBEDDING,
    LINEAR,
    NOT_REAL,
    Described,
)

JOINED = "joined expert stack not recognised"
STACKED = "matrices in one parameter that no name tells apart"
_TUNED_BY_DEFAULT = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


@dataclass(frozen=True)
class Entry(Described):
    """A trained parameter of a model.

    Attributes:
        parameter: the parameter itself; it may be empty, or only a shard.
    """

    parameter: nn.Parameter


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
            name = _name(module_name, attribute)
            shape = _whole_shape(module, attribute, parameter, flat)
            experts = _joined_experts(name, shape, module)
            if id(parameter) in embeddings or isinstance(module, nn.Embedding):
                kind = EMBEDDING
            elif not parameter.is_floating_point():
                kind = NOT_REAL
            elif isinstance(module, nn.modules.conv._ConvNd):
                kind = CONV2D if isinstance(module, nn.Conv2d) and attribute == "weight" else CONVOLUTION
            else:
                kind = _kind(name, shape, module, modules)
            yield Entry(name, shape, kind, experts, parameter)


def whole_shapes(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of the three-dimensional parameters, also frozen ones, by the names of :func:`entries`."""
    flat = _flat_shapes(model)
    found = {}
    for module_name, module in modules.items():
        for attribute, parameter in module.named_parameters(recurse=False):
            found[_name(module_name, attribute)] = _whole_shape(module, attribute, parameter, flat)
    return {name: shape for name, shape in found.items() if len(shape) == 3}


def linears(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of all Linear and Conv2d, frozen ones too, in the model's order."""
    return [name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv2d)]


def _name(module: str, attribute: str) -> str:
    return module if attribute == "weight" else f"{module}.{attribute}".removeprefix(".")


def _kind(name: str, shape: tuple[int, ...], module: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    """What holds a parameter that is neither an embedding's nor a convolution's."""
    if _is_conv1d(module):
        return CONV1D
    near = (
        modules.get(name),
        modules.get(name.rpartition(".")[0]),
    )  # its module, or what its module is part of
    if any(isinstance(own, _TUNED_BY_DEFAULT) or _is_conv1d(own) for own in near):
        return LINEAR
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        kinds = (type(kind).__name__.lstrip("_") for kind in module)
        return f"parametrized by {', '.join(_PARAMETRIZATIONS.get(kind, kind) for kind in kinds)}"
    if "expert" in name:
        return JOINED
    if len(shape) == 3:
        return STACKED
    return f"neither Linear, Conv2d nor Conv1D, but {type(module).__name__}"


def _is_conv1d(module: nn.Module | None) -> bool:
    """Whether it is transformers' Conv1D, whose weight is (in, out); does not load transformers."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
        for kind in type(module).__mro__
    )


def _joined_experts(name: str, shape: tuple[int, ...], module: nn.Module) -> int:
    """How many experts' matrices (m, n) a parameter (experts * m, n) joins, as in DBRX; else 0.

    The module must have the number of experts, and the name of the parameter must contain "expert".
    """
    count = getattr(module, "moe_num_experts", None)
    if not isinstance(count, int) or len(shape) != 2 or "expert" not in name or count < 2:
        return 0
    rows, rest = divmod(shape[0], count)
    return count if rest == 0 and rows > 1 else 0


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
