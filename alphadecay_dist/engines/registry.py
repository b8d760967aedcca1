"""All engines by name: what recipes, the command line, the trainer, AlphaDecay and ``alphadecay plan`` know.

To add one, write its files in a folder beside this one, and name them in ``ENGINES``; for ``alphadecay plan``
in ``SHARDINGS`` too. "module:attribute" is imported when it is first needed: reading the names does not load
torch, and training with torch's engines does not load DeepSpeed.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

DEFAULT = "fsdp2"
DEEPSPEED = "deepspeed"  # chosen by --deepspeed, whose JSON it needs


@dataclass(frozen=True)
class Engine:
    """An engine of the trainer.

    Attributes:
        training: "module:class" of a :class:`~alphadecay_dist.engines.training.TrainEngine`, which is made of
            the settings.
        settings: "module:function", from a :class:`~alphadecay_dist.engines.settings.RunSettings` to the
            engine's own settings, a dict or a dataclass. It runs before ranks meet, and loads no engine.
        handle: "module:class" of the object that ``TrainEngine.initialize`` returns and that users give as
            ``engine=``, with the model as its ``module``; None where a torch optimizer is all there is.
        host: "module:class" of a :class:`~alphadecay_dist.engines.host.Host`, which is made of the handle.
            Without a handle it is that of torch's optimizers.
        replicas: whether ``engine.replicate`` may be above 1.
    """

    training: str
    settings: str = "alphadecay_dist.engines.native.config:settings"
    handle: str | None = None
    host: str | None = None
    replicas: bool = False


@dataclass(frozen=True)
class ShardingRow:
    """A way to hold weights, as ``alphadecay plan`` knows it.

    Attributes:
        layouts: "module:function", see :data:`alphadecay_dist.engines.expected_layouts.Layouts`.
        replicas: whether several groups of ranks may hold the model each.
        tensor_parallel: whether ranks may divide each matrix first.
        keeps_fp32: whether the weights are fp32 in any case, as the trainer has them on torch's engines.
        masters: whether these are the fp32 masters of bf16 weights, which dtype=torch.float32 reads.
    """

    layouts: str
    replicas: bool = False
    tensor_parallel: bool = False
    keeps_fp32: bool = False
    masters: bool = False


_NATIVE = "alphadecay_dist.engines.native"
_ZERO = "alphadecay_dist.engines.zero"

ENGINES = {
    "fsdp2": Engine(f"{_NATIVE}.fsdp2_training:FSDP2Training", replicas=True),
    "ddp": Engine(f"{_NATIVE}.ddp_training:DDPTraining"),
    DEEPSPEED: Engine(
        f"{_ZERO}.training:ZeroTraining",
        settings=f"{_ZERO}.config:settings",
        handle="deepspeed.runtime.engine:DeepSpeedEngine",
        host=f"{_ZERO}.host:ZeroHost",
    ),
}

SHARDINGS = {
    "ddp": ShardingRow(f"{_NATIVE}.expected_layouts:whole", keeps_fp32=True),
    "zero0": ShardingRow(f"{_NATIVE}.expected_layouts:whole"),
    "zero1": ShardingRow(f"{_NATIVE}.expected_layouts:whole"),
    "zero2": ShardingRow(f"{_NATIVE}.expected_layouts:whole"),
    "zero1_masters": ShardingRow(f"{_ZERO}.expected_layouts:masters", masters=True),
    "zero2_masters": ShardingRow(f"{_ZERO}.expected_layouts:masters", masters=True),
    "zero3": ShardingRow(f"{_ZERO}.expected_layouts:stage_3"),
    "fsdp1": ShardingRow(f"{_NATIVE}.expected_layouts:fsdp1", replicas=True, keeps_fp32=True),
    "fsdp2": ShardingRow(
        f"{_NATIVE}.expected_layouts:fsdp2", replicas=True, tensor_parallel=True, keeps_fp32=True
    ),
}


def load(reference: str) -> Any:
    """What "module:attribute" names; its module is imported."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def engine_of(value: object) -> Engine | None:
    """The engine whose handle this is, or None. Nothing is imported: a handle's module is loaded already."""
    for engine in ENGINES.values():
        if engine.handle is not None:
            module, _, attribute = engine.handle.partition(":")
            if module in sys.modules and isinstance(value, getattr(sys.modules[module], attribute)):
                return engine
    return None
