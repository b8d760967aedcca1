"""A model under the FSDP of before."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy


def wrapped(model, strategy="FULL_SHARD", *, each_linear=True, use_orig_params=True):
    """A model under FSDP1."""
    size = dist.get_world_size()
    options = {}
    if strategy == "HYBRID_SHARD":
        options["device_mesh"] = dist.init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("r", "s"))
    return FullyShardedDataParallel(
        model,
        sharding_strategy=ShardingStrategy[strategy],
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}) if each_linear else None,
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
        **options,
    )
