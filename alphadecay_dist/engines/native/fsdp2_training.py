"""How the trainer builds FSDP2 (``fully_shard``) and HSDP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from alphadecay_dist.engines.native.training import TorchTraining
from alphadecay_dist.errors import UserError


class FSDP2Training(TorchTraining):
    """Every block is sharded by itself, and the rest of the model together; gradients are reduced in fp32."""

    @property
    def name(self) -> str:
        """``fsdp2``, with the number of replicas where there are several."""
        replicas = self.config.replicate
        return super().name if replicas == 1 else f"{super().name}, {replicas} replicas"

    def check_config(self) -> None:
        """Check that the replicas divide the ranks.

        Raises:
            UserError: they do not.
        """
        if dist.get_world_size() % self.config.replicate:
            raise UserError(
                f"engine.replicate: found {self.config.replicate}, expected a divisor of the number of "
                f"ranks, {dist.get_world_size()}"
            )

    def construct(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Build the model without storage and shard it: no rank ever holds more than its own part."""
        with torch.device("meta"):
            model = build()
        compute = torch.bfloat16 if self.config.dtype == "bfloat16" else None
        options: dict[str, Any] = {
            "mesh": self._mesh(),
            "mp_policy": MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32),
        }
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        for block in [block for blocks in lists for block in blocks]:
            fully_shard(block, **options)
        fully_shard(model, **options)
        return model.to_empty(device=self.device)

    @torch.no_grad()
    def assign(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Copy this rank's shard of a whole value that every rank has; nothing is sent."""
        assert isinstance(parameter, DTensor)
        value = value.to(device=self.device, dtype=parameter.dtype)
        mesh, placements = parameter.device_mesh, parameter.placements
        parameter.copy_(distribute_tensor(value, mesh, placements, src_data_rank=None))

    def _wrap(self, model: nn.Module) -> nn.Module:
        return model

    def _micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        # Each micro-batch is reduced to shards: no rank holds whole gradients. Replicas add theirs once.
        self._module.set_requires_all_reduce(last)
        return contextlib.nullcontext()

    def _computing(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # the policy casts

    def _mesh(self) -> DeviceMesh:
        replicas, ranks = self.config.replicate, dist.get_world_size()
        if replicas == 1:
            return init_device_mesh(self.device.type, (ranks,), mesh_dim_names=("shard",))
        shape = (replicas, ranks // replicas)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))
