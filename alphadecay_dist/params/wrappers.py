"""Modules by name as if nothing wrapped them, and what the nearest config says about each."""

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
    """The modules by name, as if nothing wrapped them, at any depth and in any order of wrappers.

    Wrappers are DDP, DataParallel, FSDP1, torch.compile and activation checkpoints. A wrapper's part of a
    name is removed only directly below the wrapper, so a user's own ``self.module`` keeps its name. So a
    module has one name, whatever trains it.
    """
    named: dict[str, nn.Module] = {}
    found: dict[str, tuple[str, nn.Module]] = {}  # by torch's name
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
    """What each module's own config says about its attention; modules without a config are left out.

    A config with neither heads nor a model type (such as a user's own settings) is ignored. A config with a
    model type but no heads counts: then a config outside of that model does not describe it.
    """
    found = {}
    for name, module in modules.items():
        config = getattr(module, "config", None)
        heads = Heads.of(config)
        if heads is not None or _names_a_type(config):
            found[name] = heads
    return found


def nearest(name: str, heads: Mapping[str, Heads | None]) -> Heads | None:
    """The heads from the innermost module that has a config and contains the dotted name."""
    path = name.split(".")
    for depth in range(len(path), -1, -1):
        outer = ".".join(path[:depth])
        if outer in heads:
            return heads[outer]
    return None


def _inner(module: nn.Module) -> str | None:
    """The attribute of a wrapper that is the wrapped module; None for any other module."""
    compiled = sys.modules.get("torch._dynamo.eval_frame")  # slow to load; if it was used, it is loaded
    if compiled is not None and isinstance(module, compiled.OptimizedModule):
        return "_orig_mod"
    return next((name for kind, name in _INNER if isinstance(module, kind)), None)


def _names_a_type(config: object) -> bool:
    if isinstance(config, Mapping):
        return bool(config.get("model_type"))
    return bool(getattr(config, "model_type", None))
