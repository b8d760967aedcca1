"""An optimizer that someone else made gets a param group for every tuned weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alphadecay_dist.control.schedules import Schedules
from alphadecay_dist.engines.given import is_engine, plain_optimizers
from alphadecay_dist.engines.zero.marks import trained_by_deepspeed
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.coverage import require_weights
from alphadecay_dist.params.group_decay import DECAY_KEY, decay_of, set_decay
from alphadecay_dist.params.groups import GROUP_KEY, UNTUNED, require_decay, require_matrices
from alphadecay_dist.params.inventory import Weight, tuned_weights
from alphadecay_dist.params.regroup import Part, parts_of, split


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    weight_decay: float | None = None,
    modules: Iterable[str] | str | None = None,
    schedulers: Iterable[Any] | Any = (),
) -> None:
    """Split the groups of an optimizer, in place, so that :class:`alphadecay_dist.AlphaDecay` can use it.

    Every tuned weight gets a group of its own, with all settings of the group that it was in: learning rate,
    betas and whatever else there is. What is not tuned stays in its group, with that one's decay. The
    optimizer's state stays, and schedules go on as they would have.

    Call it before or after the first step, but before an engine takes the optimizer. A state of the optimizer
    or of a schedule that was saved before fits before: load it first, or one that was saved afterwards.

    Args:
        model: whose parameters the optimizer has; sharded already, if it is to be by FSDP2.
        optimizer: one, or a list; wrappers of accelerate and Lightning are undone. What it knows has to be
            kept by parameter, or in the groups.
        weight_decay: the base decay, which :class:`alphadecay_dist.AlphaDecay` gets as well. By default what
            the groups of the tuned weights have, if they have all the same.
        modules: which weights are tuned, see :func:`alphadecay_dist.param_groups`.
        schedulers: the learning rate schedules that were made of the optimizers before; outer ones suffice.

    Raises:
        UserError: it is too late, as where an engine has the optimizer, or the model was sharded after the
            optimizer was made; a schedule is missing, or keeps something unknown by group; tuned weights have
            different decays.
    """
    _refuse_engines(model)
    optimizers = plain_optimizers(list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer])
    schedules = Schedules(schedulers if isinstance(schedulers, Iterable) else [schedulers])
    schedules.refuse_others(optimizers)
    weights = _held_weights(model, optimizers, modules)
    names = {id(weight.parameter): weight.name for weight in weights}
    split_ones = []
    for own in optimizers:
        parts = parts_of(own.param_groups, names)
        if any(part.module != UNTUNED for part in parts):
            _require_splittable(own)
            schedules.check(own)
            split_ones.append((own, parts))
    if weight_decay is None:
        _require_one_decay(split_ones)
    else:
        require_decay(weight_decay)
    for own, parts in split_ones:
        schedules.grow(own, [part.source for part in parts])
        before = len(own.param_groups)
        split(own.param_groups, parts)
        _refuse_states_of_before(own, before)
        for group in own.param_groups:
            if weight_decay is not None and group[GROUP_KEY] != UNTUNED:
                set_decay(group, weight_decay, weight_decay)


def _refuse_engines(model: object) -> None:
    if is_engine(model) or (isinstance(model, nn.Module) and trained_by_deepspeed(model)):
        raise UserError(
            "attach: found a model that a DeepSpeedEngine trains, which has flattened the groups; attach "
            "before deepspeed.initialize(), and give that the optimizer"
        )
    if not isinstance(model, nn.Module):
        raise UserError(f"model: found {type(model).__name__}, expected the nn.Module of the optimizer")


def _held_weights(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], modules: Iterable[str] | str | None
) -> list[Weight]:
    """The tuned weights that the optimizers have: they may train a part of the model."""
    require_matrices(model)
    weights = tuned_weights(model, [modules] if isinstance(modules, str) else modules)
    require_weights(weights, model)
    held = {
        id(own) for optimizer in optimizers for group in optimizer.param_groups for own in group["params"]
    }
    missing = [weight for weight in weights if id(weight.parameter) not in held]
    foreign = held - {id(own) for own in model.parameters()}
    if missing and (foreign or modules is not None or len(missing) == len(weights)):
        raise UserError(
            f"attach: {missing[0].name} and {len(missing) - 1} other tuned weights are not in the optimizer, "
            "as where a model is sharded after its optimizer was made, or by DeepSpeed or ZeroRedundancy"
            "Optimizer; make the optimizer of the model as it is now"
        )
    return [weight for weight in weights if id(weight.parameter) in held]


def _require_splittable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse groups that have names already, and optimizers that would not notice that groups are others."""
    kind, groups = type(optimizer).__name__, optimizer.param_groups
    if any(GROUP_KEY in group for group in groups):
        raise UserError(
            f"optimizer: its param groups have a key {GROUP_KEY!r} already: param_groups() made them, or "
            "attach() has split them; leave attach() out"
        )
    if any(DECAY_KEY not in group for group in groups):
        raise UserError(f"optimizer: found {kind}, whose param groups have no {DECAY_KEY}; use another one")
    adds_its_own_way = type(optimizer).add_param_group is not torch.optim.Optimizer.add_param_group
    if adds_its_own_way or isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(
            f"optimizer: found {kind}, which keeps more by group than its param groups; make it of "
            "param_groups(model, ...)"
        )
    if optimizer.state and any(group.get("capturable") for group in groups):
        raise UserError(
            "optimizer: found capturable=True after its first step, which a captured graph would repeat with "
            "the groups of before; attach before the first step"
        )


def _require_one_decay(split_ones: Sequence[tuple[torch.optim.Optimizer, Sequence[Part]]]) -> None:
    """Refuse tuned weights that have different decays: which one is the base, and is a 0 meant to stay?"""
    found: dict[float, str] = {}
    for optimizer, parts in split_ones:
        for part in parts:
            if part.module != UNTUNED:
                found.setdefault(decay_of(optimizer.param_groups[part.source]), part.module)
    if len(found) > 1:
        shown = ", ".join(f"{decay} ({name})" for decay, name in list(found.items())[:3])
        raise UserError(
            f"weight_decay: the tuned weights have {shown} in the optimizer, expected one base decay; give "
            "attach(..., weight_decay=) what AlphaDecay gets, or choose weights by modules="
        )


def _refuse_states_of_before(optimizer: torch.optim.Optimizer, before: int) -> None:
    """Let the optimizer say it better than torch where a state has the groups of before."""
    now = len(optimizer.param_groups)

    def check(_: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        if len(state["param_groups"]) == before != now:
            raise UserError(
                f"optimizer: found a state with {before} param groups, as before attach(), expected {now}; "
                "load it before attach(), or one that was saved afterwards"
            )

    optimizer.register_load_state_dict_pre_hook(check)
