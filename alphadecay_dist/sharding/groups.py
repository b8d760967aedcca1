"""Model -> the optimizer's param groups, one a tuned weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.distributed.fsdp import FlatParameter

from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.inventory import (
    Weight,
    all_weights,
    named_modules,
    require_weights,
    tuned_weights,
)

UNTUNED = "untuned"  # the name of the group that holds everything else
GROUP_KEY = "module"  # the key by which a param group is found again; engines keep it
BIAS, BATCHNORM = "bias", "batchnorm"


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    untuned: str = "base",
    modules: Iterable[str] | None = None,
    follow: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Param groups for ``torch.optim``: one a tuned weight, then one for everything else.

    Args:
        model: the model to optimise; parameters with ``requires_grad=False`` are left out.
        weight_decay: the base decay, which every group starts with.
        untuned: what embeddings, norms, biases and head get: ``"base"`` (as published) or ``"zero"``.
        modules: see :func:`tuned_weights`.
        follow: what shares the group of a tuned weight, as in the released code: ``"bias"``, its module's
            bias, and ``"batchnorm"``, a BatchNorm2d that is named like a convolution (``bn1`` and ``conv1``).

    Returns:
        Dicts with ``params``, ``weight_decay`` and ``module``, the name by which
        :class:`alphadecay_dist.AlphaDecay` finds the group again; ``"untuned"`` for the last.

    Raises:
        UserError: no matrix can be tuned, FSDP hides them, or a choice is none of the two.
    """
    followers = set(follow)
    if untuned not in ("base", "zero"):
        raise UserError(f"untuned: found {untuned!r}, expected 'base' or 'zero'")
    if not followers <= {BIAS, BATCHNORM}:
        raise UserError(f"follow: found {sorted(followers)}, expected none, 'bias' or 'batchnorm', or both")
    _require_matrices(model)
    weights = tuned_weights(model, modules)
    require_weights(weights)
    by_name = named_modules(model)
    groups: list[dict[str, Any]] = [
        {
            "params": [weight.parameter, *_following(weight, by_name, followers)],
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


def weights_in(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, parts: Mapping[str, Sequence[int]]
) -> list[Weight]:
    """The weights that the optimizer's groups name, in the groups' order.

    Args:
        groups: as an engine gives them back: their ``params`` may be flat or gone.
        model: the model that they were built from.
        parts: see :func:`alphadecay_dist.sharding.inventory.all_weights`.

    Raises:
        UserError: the groups were not made by :func:`param_groups`, or from another model.
    """
    _require_matrices(model)
    names = Counter(group[GROUP_KEY] for group in groups if group.get(GROUP_KEY, UNTUNED) != UNTUNED)
    if not names:
        raise UserError(
            f"optimizer: none of its {len(groups)} param groups names a module to tune (key {GROUP_KEY!r}); "
            "build them with alphadecay_dist.param_groups(model, ...)"
        )
    weights = {weight.name: weight for weight in all_weights(model, parts)}
    for name, count in names.items():
        if count > 1 or name not in weights:
            raise UserError(
                f"param group {name!r}: expected one group for one weight of the model given; "
                "build the groups with alphadecay_dist.param_groups(model, ...) from that same model"
            )
    return [weights[name] for name in names]


def _require_matrices(model: nn.Module) -> None:
    """Refuse a model whose matrices FSDP1 has replaced by flat parameters."""
    if any(isinstance(parameter, FlatParameter) for parameter in model.parameters()):
        raise UserError(
            "FSDP: found use_orig_params=False, whose optimizer cannot give a matrix its own decay; "
            "wrap the model with use_orig_params=True"
        )


def _following(weight: Weight, modules: dict[str, nn.Module], follow: set[str]) -> Iterator[nn.Parameter]:
    """The parameters that share a weight's group."""
    bias = getattr(modules.get(weight.name), "bias", None)
    if BIAS in follow and isinstance(bias, nn.Parameter) and bias.requires_grad:
        yield bias
    norm = modules.get(weight.name.replace("conv", "bn"))
    if BATCHNORM in follow and isinstance(norm, nn.BatchNorm2d):
        yield from (parameter for parameter in norm.parameters() if parameter.requires_grad)
