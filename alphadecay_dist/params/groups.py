"""Model -> the optimizer's param groups: one per tuned weight, or one for all of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn
from torch.distributed.fsdp import FlatParameter

from alphadecay_dist.decay.choices import GROUPS, PREMULTIPLY
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.params.choices import BASE, FOLLOWERS, UNTUNED_DECAYS, ZERO, ZERO_1D
from alphadecay_dist.params.coverage import require_weights
from alphadecay_dist.params.entries import entries
from alphadecay_dist.params.followers import following
from alphadecay_dist.params.inventory import Weight, all_weights, tuned_weights
from alphadecay_dist.params.no_decay import undecayed
from alphadecay_dist.params.wrappers import named_modules

UNTUNED = "untuned"  # the name of the group, or the two, that hold everything else
UNTUNED_MATRICES = "untuned_matrices"  # the name of the group of embeddings and head, where they stand apart
TUNED = "tuned"  # the name of the group that holds all tuned weights, where they share one
GROUP_KEY = "module"  # the key by which a param group is found again; engines keep it
FOLLOWERS_KEY = "followers"  # the key under which a group names what follows its weight, where anything does
NAMES_KEY = "modules"  # the key under which a shared group names its weights, in the order of its params
RATE_KEY = "lr_ratio"  # the key of a group whose learning rate is so many times that of the run


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    untuned: str = BASE,
    no_decay: Iterable[str] | str = (),
    modules: Iterable[str] | str | None = None,
    follow: Iterable[str] | str = (),
    apply: str = GROUPS,
    matrices_apart: bool = False,
) -> list[dict[str, Any]]:
    """Param groups for ``torch.optim``: one per tuned weight, or one for all; then everything else.

    Args:
        model: the model to optimise; parameters with ``requires_grad=False`` are left out.
        weight_decay: the base decay, with which every group starts.
        untuned: the decay of embeddings, norms, biases and head: ``"base"`` (as published), ``"zero"``, or
            ``"zero_1d"``: 0 for one-dimensional parameters (norms and biases), the base decay for the rest.
        no_decay: glob patterns of full parameter names, such as ``["*norm*", "*bias"]``, that get decay 0 as
            well, whatever ``untuned`` gives them. A matrix that would be tuned is then not tuned, as with
            timm's ``no_weight_decay`` and transformers' no-decay group: 0 is what was asked for.
        modules: glob patterns of the names to tune in place of the usual ones, such as ``"*.attn.c_attn"``;
            see :func:`alphadecay_dist.params.inventory.tuned_weights`.
        follow: what shares the group of a tuned weight, as in the released code: ``"bias"`` is the bias of
            its module, ``"batchnorm"`` a BatchNorm2d named like a convolution (``bn1`` and ``conv1``);
            ``"layernorm"``, there an option that is off, a LayerNorm after the Linear that comes last before
            it in the model's order.
        apply: ``"groups"``: one group per tuned weight, with its decay. ``"premultiply"``: one group for all
            of them, with decay 0; ``AlphaDecay(..., apply="premultiply")`` then applies the decays by a
            product, and without it nothing decays them. This needs AdamW, and updates faster.
        matrices_apart: give embeddings, head and whatever else has several dimensions and is not tuned a
            group of their own, ``"untuned_matrices"``: policy ``llr`` gives it the largest rate.

    Returns:
        Dicts with ``params``, ``weight_decay`` and ``module``, the name by which
        :class:`alphadecay_dist.AlphaDecay` finds the group. It is ``"untuned"`` for the last group. With
        ``"zero_1d"`` or ``no_decay`` it is so for the last two, and the very last has decay 0 (fewer if one
        is empty). With ``"premultiply"`` the first is named ``"tuned"``, and has the names of its weights
        in ``modules``. With ``follow`` a group has the names of what follows in ``followers``.

    Raises:
        UserError: no matrix can be tuned, FSDP hides the matrices, a choice is unknown, ``follow`` is used
            with ``"premultiply"``, or a pattern of ``no_decay`` matches nothing.
    """
    require_decay(weight_decay)
    followers = {follow} if isinstance(follow, str) else set(follow)
    if untuned not in UNTUNED_DECAYS:
        raise UserError(f"untuned: found {untuned!r}, expected 'base', 'zero' or 'zero_1d'")
    if not followers <= {*FOLLOWERS}:
        raise UserError(f"follow: found {sorted(followers)}, expected none or some of {', '.join(FOLLOWERS)}")
    if apply not in (GROUPS, PREMULTIPLY):
        raise UserError(f"apply: found {apply!r}, expected {GROUPS!r} or {PREMULTIPLY!r}")
    if followers and apply == PREMULTIPLY:
        raise UserError(f"follow: found {sorted(followers)} with apply={apply!r}, expected none")
    require_matrices(model)
    free = undecayed(model, no_decay)
    chosen = tuned_weights(model, [modules] if isinstance(modules, str) else modules)
    weights = [weight for weight in chosen if id(weight.parameter) not in free]
    require_weights(weights, model)
    if apply == PREMULTIPLY:
        groups = [_shared_group(weights)]
    else:
        groups = _own_groups(weights, model, followers, free, weight_decay)
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    if untuned == ZERO:
        free |= {id(parameter) for parameter in rest}
    vectors = _vectors(model) if untuned == ZERO_1D or matrices_apart else set()
    if untuned == ZERO_1D:
        free |= vectors
    apart = {id(parameter) for parameter in rest} - vectors if matrices_apart else set()
    return [*groups, *_untuned_groups(rest, apart, free, weight_decay)]


def require_decay(weight_decay: float) -> float:
    """The number given, or an error if it is no decay."""
    if not isinstance(weight_decay, Real) or not 0 <= weight_decay < math.inf:
        raise UserError(f"weight_decay: found {shown(weight_decay)}, expected a number >= 0")
    return weight_decay


def names_in(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The tuned weights that a group names, in the order of its params, which may include followers."""
    if NAMES_KEY in group:
        return tuple(group[NAMES_KEY])
    name = group.get(GROUP_KEY, UNTUNED)
    return () if name in (UNTUNED, UNTUNED_MATRICES) else (name,)


def followers_in(groups: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of what shares the group, and so the decay, of a tuned weight."""
    return {name for group in groups for name in group.get(FOLLOWERS_KEY, ())}


def rate_of(group: Mapping[str, Any], learning_rate: float) -> float:
    """The learning rate of a group, where that of the run is this."""
    return learning_rate * group.get(RATE_KEY, 1.0)


def layout_of(groups: Iterable[Mapping[str, Any]]) -> str:
    """How decays are applied with these groups: ``"groups"`` or ``"premultiply"``."""
    return PREMULTIPLY if any(NAMES_KEY in group for group in groups) else GROUPS


def weights_in(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, parts: Mapping[str, Sequence[int]]
) -> list[Weight]:
    """The weights that the optimizer's groups name, in the groups' order.

    Args:
        groups: as an engine returns them: their ``params`` may be flat or missing.
        model: the model that they were built from.
        parts: see :func:`alphadecay_dist.params.inventory.all_weights`.

    Raises:
        UserError: the groups were not made by :func:`param_groups`, or were made from another model.
    """
    require_matrices(model)
    names = Counter(name for group in groups for name in names_in(group))
    if not names:
        raise UserError(
            f"optimizer: none of its {len(groups)} param groups names a module to tune (key {GROUP_KEY!r}); "
            "build them with alphadecay_dist.param_groups(model, ...), or split them with "
            "alphadecay_dist.attach(model, optimizer)"
        )
    weights = {weight.name: weight for weight in all_weights(model, parts)}
    for name, count in names.items():
        if count > 1 or name not in weights:
            raise UserError(
                f"param group {name!r}: expected one group for one weight of the model given; "
                "build the groups with alphadecay_dist.param_groups(model, ...) from that same model"
            )
    return [weights[name] for name in names]


def _untuned_groups(
    rest: Sequence[nn.Parameter], apart: Collection[int], free: Collection[int], weight_decay: float
) -> list[dict[str, Any]]:
    """What is not tuned, no empty groups: matrices that stand apart first, and then what decays.

    Args:
        rest: the parameters.
        apart: ids of those in the group of their own name.
        free: ids of those that do not decay.
        weight_decay: the decay of the others.
    """
    groups = []
    for is_apart, is_free in itertools.product((True, False), (False, True)):
        params = [p for p in rest if (id(p) in apart, id(p) in free) == (is_apart, is_free)]
        if params:
            decay = 0.0 if is_free else weight_decay
            name = UNTUNED_MATRICES if is_apart else UNTUNED
            groups.append({"params": params, "weight_decay": decay, GROUP_KEY: name})
    return groups


def _vectors(model: nn.Module) -> set[int]:
    """The ids of the parameters of one dimension, by their whole shapes."""
    return {id(e.parameter) for e in entries(model, named_modules(model)) if len(e.shape) < 2}


def _shared_group(weights: Sequence[Weight]) -> dict[str, Any]:
    names = tuple(weight.name for weight in weights)
    parameters = [weight.parameter for weight in weights]
    return {"params": parameters, "weight_decay": 0.0, GROUP_KEY: TUNED, NAMES_KEY: names}


def _own_groups(
    weights: Sequence[Weight],
    model: nn.Module,
    followers: set[str],
    free: Collection[int],
    weight_decay: float,
) -> list[dict[str, Any]]:
    modules = named_modules(model)
    found = following([weight.name for weight in weights], modules, followers)
    names = {id(entry.parameter): entry.name for entry in entries(model, modules)}
    groups = []
    for weight in weights:
        behind = [own for own in found[weight.name] if id(own) not in free]
        group = {"params": [weight.parameter, *behind], "weight_decay": weight_decay, GROUP_KEY: weight.name}
        named = tuple(names[id(own)] for own in behind)
        groups.append(group | ({FOLLOWERS_KEY: named} if named else {}))
    return groups


def require_matrices(model: nn.Module) -> None:
    """Refuse a model whose matrices FSDP1 has replaced by flat parameters."""
    if any(isinstance(parameter, FlatParameter) for parameter in model.parameters()):
        raise UserError(
            "FSDP: found use_orig_params=False, whose optimizer cannot give a matrix its own decay; "
            "wrap the model with use_orig_params=True"
        )
