"""Model -> the weights to tune, by name, and the matrices in each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.fused import (
    Cut,
    Heads,
    cut_by_name,
    cut_by_sizes,
    output_axis,
    sizes_for,
)
from alphadecay_dist.spectral import MIN_EIGENVALUES


@dataclass(frozen=True)
class Weight:
    """One tuned weight, which has one decay, and the matrices that it is made of.

    Attributes:
        name: dotted name of its module, or of the parameter itself where a module has several.
        parameter: it may be empty or hold a part only.
        shape: the whole's: (m, n), an expert stack's (experts, m, n), or a Conv2d's (out, in, h, w).
        cut: how each matrix of it is cut into parts; None where it is not fused.
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    cut: Cut | None = None

    def units(self) -> list[str]:
        """What has an owner of its own: each expert of a stack, else the weight."""
        if len(self.shape) != 3:
            return [self.name]
        return [f"{self.name}.{expert}" for expert in range(self.shape[0])]

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Shape of one unit."""
        return self.shape[1:] if len(self.shape) == 3 else self.shape

    def parts(self, unit: str) -> list[str]:
        """Names of the matrices that have an alpha of their own, in one unit."""
        return [unit] if self.cut is None else [f"{unit}.{part}" for part in self.cut.names]

    def part_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parts of one unit."""
        return [self.unit_shape] if self.cut is None else [*self.cut.shapes(self.unit_shape)]

    def cut_up(self, unit: str, whole: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The parts of a unit, by name, from its whole tensor."""
        if self.cut is None:
            yield unit, whole
        else:
            yield from ((f"{unit}.{part}", tensor) for part, tensor in self.cut.parts(whole))


def all_weights(model: nn.Module, parts: Mapping[str, Sequence[int]] | None = None) -> list[Weight]:
    """Every trained weight that could be tuned, in the model's order, each parameter once.

    That is the weight of an ``nn.Linear`` or ``nn.Conv2d``, and every other parameter of two or three
    dimensions (three: a stack of experts); none that is an embedding's too, and none whose matrices all have
    fewer than 50 eigenvalues.

    Args:
        model: any module; its parameters may be sharded already.
        parts: explicit sizes of fused weights, by glob pattern, such as
            ``{"*.qkv_proj": (2048, 512, 512)}``; the others are cut by their names.

    Raises:
        UserError: sizes that do not fit, or a pattern that matches nothing.
    """
    parts = parts or {}
    modules = named_modules(model)
    heads = Heads.of(getattr(modules[""], "config", None))
    weights = [_with_cut(weight, modules, heads, parts) for weight in _candidates(modules)]
    for pattern in parts:
        if not any(fnmatchcase(weight.name, pattern) for weight in weights):
            raise UserError(f"parts: {pattern!r} matches no weight; give a glob over the names of the model")
    return [weight for weight in weights if max(map(_eigenvalues, weight.part_shapes())) >= MIN_EIGENVALUES]


def tuned_weights(
    model: nn.Module,
    modules: Iterable[str] | None = None,
    parts: Mapping[str, Sequence[int]] | None = None,
) -> list[Weight]:
    """The weights whose decay follows their spectrum, in the model's order.

    By default every weight of :func:`all_weights` that belongs to an ``nn.Linear``, ``nn.Conv2d`` or
    ``nn.MultiheadAttention``, or is a stack of experts, inside a numbered block (a name such as
    ``model.layers.0.mlp.up_proj``); embeddings, the head, norms and LoRA factors are not.

    Args:
        model: any module; its parameters may be sharded already.
        modules: glob patterns of names to take instead, such as ``"*.attn.c_attn"``.
        parts: see :func:`all_weights`.

    Raises:
        UserError: a pattern matches nothing that could be tuned.
    """
    candidates = all_weights(model, parts)
    if modules is None:
        known = {
            name for name, module in named_modules(model).items() if isinstance(module, _TUNED_BY_DEFAULT)
        }
        return [weight for weight in candidates if _by_default(weight, known)]
    patterns = list(modules)
    for pattern in patterns:
        if not any(fnmatchcase(weight.name, pattern) for weight in candidates):
            raise UserError(
                f"modules: {pattern!r} matches no trained nn.Linear or other matrix of {MIN_EIGENVALUES} x "
                f"{MIN_EIGENVALUES} or more; give a glob over the names of model.named_modules()"
            )
    return [w for w in candidates if any(fnmatchcase(w.name, pattern) for pattern in patterns)]


def require_weights(weights: Sequence[Weight]) -> None:
    """Raise a UserError where there is nothing to tune."""
    if not weights:
        raise UserError(
            "no module to tune: found no trained nn.Linear inside a numbered block (layers.0.mlp.up_proj), "
            f"of {MIN_EIGENVALUES} rows and columns or more; use a wider model, or name modules yourself"
        )


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by name, as if nothing wrapped them: DDP, FSDP1, torch.compile and activation checkpoints.

    So a module has one name, whatever trains it.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    named = {}
    for name, module in model.named_modules():
        parts = [part for part in name.split(".") if part and part not in _WRAPPERS]
        named[".".join(parts)] = module  # the innermost of equal names comes last
    return named


def first_and_last(model: nn.Module) -> set[str]:
    """Names of the first and the last nn.Linear or nn.Conv2d, which AlphaDecay's released code leaves out.

    In a LLaMA these are layer 0's q_proj, for an embedding is neither, and lm_head.
    """
    modules = named_modules(model).items()
    names = [name for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    return {names[0], names[-1]} if names else set()


_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
_TUNED_BY_DEFAULT = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


def _by_default(weight: Weight, known: set[str]) -> bool:
    *path, last = weight.name.split(".")
    in_block = any(part.isdigit() for part in path)
    is_stack = len(weight.shape) == 3 and "expert" in weight.name
    is_known = weight.name in known or ".".join(path) in known or is_stack
    return in_block and is_known and "lora_" not in weight.name and "bias" not in last


def _candidates(modules: Mapping[str, nn.Module]) -> Iterator[Weight]:
    """Trained weights of two or more dimensions, each parameter once, none that is an embedding's."""
    seen = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    for module_name, module in modules.items():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad or not parameter.is_floating_point():
                continue
            seen.add(id(parameter))
            shape = _whole_shape(module, name, parameter)
            if len(shape) in (2, 3) or (len(shape) == 4 and isinstance(module, nn.Conv2d)):
                own = name == "weight"
                yield Weight(module_name if own else f"{module_name}.{name}".lstrip("."), parameter, shape)


def _whole_shape(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape before sharding, from the module where it tells: an engine may have emptied the parameter."""
    if name == "weight" and isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if name == "weight" and isinstance(module, nn.Conv2d):
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    if isinstance(module, nn.modules.conv._ConvNd):
        return ()
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ds_shape: where DeepSpeed keeps it


def _with_cut(
    weight: Weight,
    modules: Mapping[str, nn.Module],
    heads: Heads | None,
    parts: Mapping[str, Sequence[int]],
) -> Weight:
    if len(weight.shape) == 4:
        return weight
    shape = weight.unit_shape
    axis = _output_axis(weight, modules)
    sizes = sizes_for(weight.name, parts)
    if sizes is not None:
        cut = cut_by_sizes(weight.name, shape, sizes, axis)
    else:
        cut = cut_by_name(weight.name, shape, heads, axis)
    return Weight(weight.name, weight.parameter, weight.shape, cut)


def _output_axis(weight: Weight, modules: Mapping[str, nn.Module]) -> int:
    if len(weight.shape) == 3:
        experts = modules[weight.name.rpartition(".")[0]]
        down = getattr(experts, "down_proj", None)
        beside = _whole_shape(experts, "down_proj", down)[1:] if isinstance(down, nn.Parameter) else None
        return output_axis(weight.unit_shape, beside)
    module = modules.get(weight.name)
    return 1 if type(module).__name__ == "Conv1D" else 0  # transformers' (in, out) Linear


def _eigenvalues(shape: Sequence[int]) -> int:
    return min(shape[0], shape[1]) * math.prod(shape[2:])
