"""What a caller gave as model, optimizer, engine and process group: unwrapped, or refused with advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from alphadecay_dist.engines.registry import engine_of
from alphadecay_dist.engines.zero.marks import holds_weights, trained_by_deepspeed
from alphadecay_dist.errors import UserError, shown, warn

NO_ENGINE = (
    "engine: found none, but DeepSpeed trains this model; give AlphaDecay(model, optimizer, "
    "engine=engine, ...) with the engine that deepspeed.initialize() returned"
)


class Given(NamedTuple):
    """A model and its optimizers, with the engine and the ranks that train them.

    There are no optimizers where the engine has its own, or where weights are only watched.
    """

    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    engine: Any | None
    process_group: dist.ProcessGroup | None


def unwrapped(model: Any, optimizer: Any, engine: Any, process_group: Any, *, watches: bool = False) -> Given:
    """Undo what accelerate and others wrap.

    An engine given as the model is the engine, and its module is the model. An optimizer that shows the
    groups of another one stands for that one; several may be given in a list. Where weights are only
    watched, it may be any object.

    Raises:
        UserError: something other than what is expected.
    """
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    _refuse_exchanged(model, given)
    if not isinstance(model, nn.Module):
        raise UserError(f"model: found {shown(model)}, expected the nn.Module given to param_groups()")
    if engine is not None and not is_engine(engine):
        engine = getattr(engine, "engine", engine)  # accelerate's DeepSpeedEngineWrapper
    if engine is not None and not is_engine(engine):
        raise UserError(
            f"engine: found {_kind(engine)}, expected the DeepSpeedEngine of deepspeed.initialize(); "
            "without DeepSpeed leave engine out"
        )
    if is_engine(model):
        if engine is not None and engine is not model:
            raise UserError("model: found another engine than engine=; give the model that engine= trains")
        model, engine = model.module, model
    if engine is not None and not _share_parameters(model, engine.module):
        raise UserError(
            "model: found another model than engine= trains; give the one that was given to "
            "deepspeed.initialize()"
        )
    if engine is not None or watches:
        if engine is None:
            _refuse_held_weights(model)
        elif len(given) > 1:
            raise UserError(
                f"optimizer: found {len(given)} of them, expected the one that engine= steps: DeepSpeed "
                "takes one; put all param groups into it"
            )
        return Given(model, (), engine, _group(process_group))
    optimizers = plain_optimizers(given)
    _require_engine(model, optimizers)
    return Given(model, optimizers, None, _group(process_group))


def _refuse_exchanged(model: object, optimizers: Sequence[object]) -> None:
    """Refuse an optimizer in the place of the model, and a model in that of an optimizer."""
    modules = [own for own in optimizers if isinstance(own, nn.Module)]
    if any(is_engine(own) for own in modules):
        raise UserError(
            f"optimizer: found a {_kind(modules[0])}; give AlphaDecay(model, optimizer, engine=engine, ...)"
        )
    if isinstance(model, torch.optim.Optimizer) or modules:
        found = ", ".join(map(_kind, optimizers))
        raise UserError(
            f"AlphaDecay: found {_kind(model)} as model and {found} as optimizer; give "
            "AlphaDecay(model, optimizer, ...)"
        )


def _share_parameters(one: nn.Module, other: nn.Module) -> bool:
    return not set(one.parameters()).isdisjoint(other.parameters())


def is_engine(value: object) -> bool:
    """Whether it is an engine's handle, such as a DeepSpeedEngine; nothing is loaded for the question."""
    return engine_of(value) is not None


def plain_optimizers(given: Sequence[Any]) -> tuple[torch.optim.Optimizer, ...]:
    """Each optimizer without its wrappers: accelerate's, Lightning's, timm's, and whatever shows its groups.

    Raises:
        UserError: something else than an optimizer, one twice, or none.
    """
    _refuse_groups(given)
    found = tuple(_plain(optimizer) for optimizer in given)
    if not found or len({id(optimizer) for optimizer in found}) < len(found):
        raise UserError(f"optimizer: found {list(map(_kind, found))}, expected one or several, each once")
    return found


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The innermost of nested optimizers that share their groups."""
    if not hasattr(optimizer, "param_groups"):
        raise UserError(
            f"optimizer: found {_kind(optimizer)}, expected a torch optimizer; give the one that was made of "
            "param_groups(model, ...)"
        )
    inner = _inner(optimizer)
    while inner is not None:
        optimizer, inner = inner, _inner(inner)
    return optimizer


def _inner(optimizer: Any) -> Any | None:
    """The optimizer inside that shares its groups: under the last name in timm's Lookahead."""
    for name in ("optimizer", "_base_optimizer"):
        inner = getattr(optimizer, name, None)
        if inner is not optimizer and getattr(inner, "param_groups", None) is optimizer.param_groups:
            return inner
    return None


def _refuse_groups(given: Sequence[object]) -> None:
    if any(isinstance(item, dict) for item in given):
        raise UserError(
            "optimizer: found param groups, expected a torch optimizer; give these groups to one, such as "
            "torch.optim.AdamW(groups, lr=...), and that to AlphaDecay"
        )


def _require_engine(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse a model whose weights DeepSpeed keeps, at stages 1 to 3; at stage 0 warn."""
    _refuse_held_weights(model)
    if trained_by_deepspeed(model) and not any(_has_parameters_of(own, model) for own in optimizers):
        raise UserError(NO_ENGINE)
    if trained_by_deepspeed(model) and not (dist.is_initialized() and dist.get_rank()):
        warn(
            "engine: found none, though a DeepSpeedEngine was made of this model: every call of step() "
            "counts as an update, at micro-batches too; give AlphaDecay(..., engine=engine)"
        )


def _refuse_held_weights(model: nn.Module) -> None:
    if holds_weights(model):
        raise UserError(NO_ENGINE)


def _has_parameters_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    own = set(model.parameters())
    return any(not own.isdisjoint(group["params"]) for group in optimizer.param_groups)


def _group(group: Any) -> dist.ProcessGroup | None:
    """The process group, of a mesh too.

    Raises:
        UserError: it is not a process group, or this rank is not in it.
    """
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise UserError(
                f"process_group: found a mesh of {group.ndim} dimensions, expected one or a process "
                "group; leave it out where the mesh holds all ranks, else give a new_group() of its ranks"
            )
        member = group.get_coordinate() is not None
        group = group.get_group() if member else dist.GroupMember.NON_GROUP_MEMBER
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise UserError("process_group: this rank is not in it; construct AlphaDecay on its ranks alone")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise UserError(f"process_group: found {shown(group)}, expected a torch.distributed process group")
    return group


def _kind(value: object) -> str:
    return shown(value) if isinstance(value, str | int | float) else type(value).__name__
