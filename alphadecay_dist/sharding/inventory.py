"""Model -> the weights to tune, by name, the matrices in each, and the optimizer's param groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

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

UNTUNED = "untuned"  # the name of the group that holds everything else
GROUP_KEY = "module"  # the key by which a param group is found again; engines keep it


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
    dimensions (three: a stack of experts); none that is an embedding's too, and none whose matrices have
    fewer than 50 eigenvalues.

    Args:
        model: any module; its parameters may be sharded already.
        parts: explicit sizes of fused weights, by glob pattern, such as
            ``{"*.qkv_proj": (2048, 512, 512)}``; the others are cut by their names.

    Raises:
        UserError: sizes that do not fit, or a pattern that matches nothing.
    """
    parts = parts or {}
    heads = Heads.of(getattr(named_modules(model)[""], "config", None))
    weights = [_with_cut(weight, model, heads, parts) for weight in _candidates(model)]
    for pattern in parts:
        if not any(fnmatchcase(weight.name, pattern) for weight in weights):
            raise UserError(f"parts: {pattern!r} matches no weight; give a glob over the names of the model")
    return [weight for weight in weights if min(map(_eigenvalues, weight.part_shapes())) >= MIN_EIGENVALUES]


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


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    untuned: str = "base",
    modules: Iterable[str] | None = None,
    batchnorm: str = "untuned",
) -> list[dict[str, Any]]:
    """Param groups for ``torch.optim``: one a tuned weight, then one for everything else.

    Args:
        model: the model to optimise; parameters with ``requires_grad=False`` are left out.
        weight_decay: the base decay, which every group starts with.
        untuned: what embeddings, norms, biases and head get: ``"base"`` (as published) or ``"zero"``.
        modules: see :func:`tuned_weights`.
        batchnorm: ``"untuned"``, or ``"follow"``: a BatchNorm2d named like a tuned convolution (``bn1`` and
            ``conv1``) shares its group, as in the released code.

    Returns:
        Dicts with ``params``, ``weight_decay`` and ``module``, the name by which
        :class:`alphadecay_dist.AlphaDecay` finds the group again; ``"untuned"`` for the last.

    Raises:
        UserError: no matrix can be tuned, or a choice is none of the two.
    """
    _check_choice("untuned", untuned, ("base", "zero"))
    _check_choice("batchnorm", batchnorm, ("untuned", "follow"))
    weights = tuned_weights(model, modules)
    require_weights(weights)
    following = _following_norms(model) if batchnorm == "follow" else {}
    groups: list[dict[str, Any]] = [
        {
            "params": [weight.parameter, *following.get(weight.name, [])],
            "weight_decay": weight_decay,
            GROUP_KEY: weight.name,
        }
        for weight in weights
    ]
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    if rest:
        base = weight_decay if untuned == "base" else 0.0
        groups.append({"params": rest, "weight_decay": base, GROUP_KEY: UNTUNED})
    return groups


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
    is_known = weight.name in known or ".".join(path) in known or len(weight.shape) == 3
    return in_block and is_known and "lora_" not in weight.name and "bias" not in last


def _candidates(model: nn.Module) -> Iterator[Weight]:
    """Trained weights of two or more dimensions, each parameter once, none that is an embedding's."""
    modules = named_modules(model)
    seen = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    for module_name, module in modules.items():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
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
    weight: Weight, model: nn.Module, heads: Heads | None, parts: Mapping[str, Sequence[int]]
) -> Weight:
    if len(weight.shape) == 4:
        return weight
    shape = weight.unit_shape
    axis = _output_axis(weight, model)
    sizes = sizes_for(weight.name, parts)
    if sizes is not None:
        cut = cut_by_sizes(weight.name, shape, sizes, axis)
    else:
        cut = cut_by_name(weight.name, shape, heads, axis)
    return Weight(weight.name, weight.parameter, weight.shape, cut)


def _output_axis(weight: Weight, model: nn.Module) -> int:
    if len(weight.shape) == 3:
        experts = named_modules(model)[weight.name.rpartition(".")[0]]
        down = getattr(experts, "down_proj", None)
        beside = _whole_shape(experts, "down_proj", down)[1:] if isinstance(down, nn.Parameter) else None
        return output_axis(weight.unit_shape, beside)
    module = named_modules(model).get(weight.name)
    return 1 if type(module).__name__ == "Conv1D" else 0  # transformers' (in, out) Linear


def _following_norms(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters of every BatchNorm2d, by the name of the convolution that it is named like."""
    return {
        name.replace("bn", "conv"): [p for p in module.parameters() if p.requires_grad]
        for name, module in named_modules(model).items()
        if isinstance(module, nn.BatchNorm2d) and "bn" in name
    }


def _eigenvalues(shape: Sequence[int]) -> int:
    return min(shape[0], shape[1]) * math.prod(shape[2:])


def _check_choice(name: str, found: str, choices: tuple[str, ...]) -> None:
    if found not in choices:
        raise UserError(f"{name}: found {found!r}, expected {' or '.join(map(repr, choices))}")
