"""Modules by name as if nothing wrapped them, and what the nearest config says of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from alphadecay_dist.params.fused import Heads

_INNER: tuple[tuple[type[nn.Module], str], ...] = (
    (DistributedDataParallel, "module"),
    (DataParallel, "module"),
    (FullyShardedDataParallel, "_fsdp_wrapped_module"),
    (ActivationWrapper, "_checkpoint_wrapped_module"),
)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by name, as if nothing wrapped them, at any depth and in any order.

    Wrappers are DDP, DataParallel, FSDP1, torch.compile and activation checkpoints. A wrapper's own part of a
    name is left out only below the wrapper itself, so that a user's ``self.module`` keeps its name. So a
    module has one name, whatever trains it.
    """
    named: dict[str, nn.Module] = {}
    found: dict[str, tuple[str, nn.Module]] = {}  # by the name that torch gives
    for raw, module in model.named_modules():
        parent, _, last = raw.rpartition(".")
        name = ""
        if raw:
            outer, holder = found[parent]
            name = outer if last == _inner(holder) else f"{outer}.{last}".removeprefix(".")
        found[raw] = (name, module)
        named[name] = module  # the innermost of equal names comes last
    return named


def heads_by_module(modules: Mapping[str, nn.Module]) -> dict[str, Heads | None]:
    """What each module's own config says of its attention; modules without a config are left out.

    A config that tells neither heads nor a model type (a user's own settings, say) is passed over. One that
    names a model type and no heads counts: what is outside of that model does not describe it.
    """
    found = {}
    for name, module in modules.items():
        config = getattr(module, "config", None)
        heads = Heads.of(config)
        if heads is not None or _names_a_type(config):
            found[name] = heads
    return found


def nearest(name: str, heads: Mapping[str, Heads | None]) -> Heads | None:
    """The heads of the innermost module with a config that a dotted name lies in."""
    path = name.split(".")
    for depth in range(len(path), -1, -1):
        outer = ".".join(path[:depth])
        if outer in heads:
            return heads[outer]
    return None


def _inner(module: nn.Module) -> str | None:
    """The attribute in which a wrapper holds what it wraps; None of any other module."""
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # slow to load, and loaded where it was used
    if compiled is not None and isinstance(module, compiled.OptimizedModule):
        return "_orig_mod"
    return next((name for kind, name in _INNER if isinstance(module, kind)), None)


def _names_a_type(config: object) -> bool:
    if isinstance(config, Mapping):
        return bool(config.get("model_type"))
    return bool(getattr(config, "model_type", None))
