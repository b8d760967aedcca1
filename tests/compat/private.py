"""The private attributes of other packages that this one reads, and where they are found.

They may change in any release. Objects that need ranks are made inside of one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import SHAPES, backward, engine_of, matrices_of
from tests.sources import ROOT, TREES

NOT_PRIVATE = {"_exit"}  # of os: documented


@dataclass(frozen=True)
class Owner:
    """What has private attributes that are read.

    Attributes:
        package: its distribution.
        what: it is, for the message.
        names: of the attributes.
        find: gives it, inside of a rank.
        since: the first major version that has them; before, nothing is missed.
    """

    package: str
    what: str
    names: tuple[str, ...]
    find: Callable[[], Any]
    since: int = 0

    def missing(self) -> list[str]:
        """A line for each attribute that is not there."""
        installed = version(self.package)
        if int(installed.partition(".")[0]) < self.since:
            return []
        found, why = self._found()
        return [
            f"{self.package} {installed}: no private attribute {name} of {self.what}{why}; read by "
            f"{', '.join(readers().get(name, ()))}"
            for name in self.names
            if not hasattr(found, name)
        ]

    def _found(self) -> tuple[Any, str]:
        """The owner, or None and why there is none: the others are looked at all the same."""
        try:
            return self.find(), ""
        except Exception as error:  # another release may fail in any way
            return None, f", which was not found ({type(error).__name__}: {' '.join(str(error).split())})"


def _fsdp1() -> Any:
    model = wrapped(nn.Sequential(nn.Linear(8, 8)), each_linear=False)
    model(torch.zeros(1, 8)).sum().backward()
    return model


def _weight(stage: int) -> Any:
    engine, model, _ = engine_of(stage, SHAPES, torch.bfloat16)
    backward(engine)
    return matrices_of(model)[0].parameter


def _scheduled_step() -> Any:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    return optimizer.step


def _schedule_of_two() -> Any:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    parts = [torch.optim.lr_scheduler.ConstantLR(optimizer) for _ in range(2)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[1])


def _transformers() -> Any:
    from transformers import PreTrainedModel

    return PreTrainedModel


def _joined_experts() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=8, num_hidden_layers=1, **sizes)).config


def _wrapper() -> Any:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

    return checkpoint_wrapper


def _placements() -> Any:
    from torch.distributed.tensor import placement_types

    return placement_types


OWNERS = [
    Owner("torch", "torch", ("_foreach_add_", "_foreach_lerp_", "_foreach_mul_"), lambda: torch),
    Owner("torch", "torch.nn.modules.conv", ("_ConvNd",), lambda: nn.modules.conv),
    Owner(
        "torch",
        "Module",
        ("_parameters", "_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl"),
        nn.Module,
    ),
    Owner("torch", "a compiled module", ("_orig_mod",), lambda: torch.compile(nn.Linear(1, 1))),
    Owner("torch", "a scheduled optimizer's step", ("_wrapped_by_lr_sched",), _scheduled_step),
    Owner("torch", "SequentialLR", ("_schedulers",), _schedule_of_two),
    Owner("torch", "GradScaler", ("_per_optimizer_states",), lambda: torch.amp.GradScaler("cpu")),
    Owner("torch", "torch.distributed.tensor.placement_types", ("_StridedShard",), _placements),
    Owner("torch", "torch.distributed.algorithms._checkpoint", ("ActivationWrapper",), _wrapper),
    Owner("torch", "FSDP1's module", ("_handle",), _fsdp1),
    Owner("torch", "FSDP1's handle", ("_get_flat_param_offsets",), lambda: _fsdp1()._handle),
    Owner(
        "torch",
        "FSDP1's flat_param",
        ("_params", "_shapes", "_sharded_size", "_local_shard", "_is_padding_mask"),
        lambda: _fsdp1()._handle.flat_param,
    ),
    Owner("deepspeed", "a weight at ZeRO-2", ("_hp_mapping",), lambda: _weight(2)),
    Owner("deepspeed", "a weight at ZeRO-3", ("_z3_optimizer",), lambda: _weight(3)),
    Owner("deepspeed", "the engine", ("_config",), lambda: engine_of(1, SHAPES)[0]),
    Owner("deepspeed", "the engine's config", ("_param_dict",), lambda: engine_of(1, SHAPES)[0]._config),
    Owner(
        "deepspeed",
        "the optimizer of ZeRO-3",
        ("_reassign_or_swap_out_partitioned_parameters",),
        lambda: engine_of(3, SHAPES)[0].optimizer,
    ),
    Owner(
        "transformers",
        "PreTrainedModel",
        ("_init_weights", "_from_config", "_keys_to_ignore_on_load_unexpected"),
        _transformers,
    ),
    Owner("transformers", "a config", ("_experts_implementation",), _joined_experts, since=5),
]


def missing() -> list[str]:
    """A line for each private attribute that is not there; inside of a rank."""
    assert dist.is_initialized()
    return [line for owner in OWNERS for line in owner.missing()]


def readers() -> dict[str, list[str]]:
    """The private names that the package reads of others, with the files that do."""
    found: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for name in sorted(set(private_names(tree)) - NOT_PRIVATE):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def private_names(tree: ast.Module) -> Iterator[str]:
    """Private names that are read of something else than ``self``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield from filter(_is_private, [node.attr])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant):
                yield from filter(_is_private, [str(name.value)])
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            inside = any(map(_is_private, str(node.module).split(".")))
            yield from (alias.name for alias in node.names if inside or _is_private(alias.name))


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
