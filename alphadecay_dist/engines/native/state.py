"""The state of a run under a torch optimizer: whole parameters (DDP, ZeRO-0) or DTensors (FSDP2, HSDP)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from alphadecay_dist.engines.native.dtensor import mesh_layout
from alphadecay_dist.engines.state import WEIGHT, Part, Scalars, is_elementwise, scalar_tensor
from alphadecay_dist.sharding.layout import Flat, Grid


class TorchState:
    """Parameters and their entries in a torch optimizer.

    Args:
        model: before its first forward, after which a module may hold other tensors than the optimizer.
        optimizer: over the model's parameters.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._parameters = dict(model.named_parameters())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the whole parameters."""
        return {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}

    def parts(self) -> list[Part]:
        """This rank's local tensors; of replicas the lowest rank's are saved."""
        found = []
        for name, parameter in self._parameters.items():
            index, saved = _place(parameter)
            if not index.numel:
                continue
            tensors = {WEIGHT: parameter.detach()}
            state = self._optimizer.state.get(parameter, {})
            tensors |= {kind: value for kind, value in state.items() if is_elementwise(value, parameter)}
            shape = tuple(parameter.shape)
            found += [
                Part(name, kind, shape, index, _local(tensor, index), saved)
                for kind, tensor in tensors.items()
            ]
        return found

    def scalars(self) -> Scalars:
        """Numbers, and tensors of one number that do not have the parameter's shape."""
        found: Scalars = {}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if not is_elementwise(value, parameter):
                    found.setdefault(key, {})[name] = float(value)
        return found

    def create(self, kinds: Mapping[str, Collection[str]], scalars: Scalars) -> None:
        """Entries for every parameter that has any."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                name = names[parameter]
                numbers = {key: of[name] for key, of in scalars.items() if name in of}
                state = {key: scalar_tensor(value, parameter, group) for key, value in numbers.items()}
                state |= {kind: torch.zeros_like(parameter.detach()) for kind in kinds.get(name, ())}
                if state:
                    self._optimizer.state[parameter] = state

    def publish(self, step: int) -> None:
        """Drop unsharded copies of the old weights; the parts are what the model computes with otherwise."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _place(parameter: Tensor) -> tuple[Flat | Grid, bool]:
    """Where this rank's part lies, and whether this rank is the first that holds it."""
    rank = dist.get_rank()
    if not isinstance(parameter, DTensor):
        return Flat(0, parameter.numel()), rank == 0
    mesh = parameter.device_mesh.mesh
    members = tuple(mesh.flatten().tolist())
    layout = mesh_layout(tuple(parameter.shape), parameter.placements, tuple(mesh.shape), members)
    for piece in layout.pieces:
        if rank in piece.holders:
            return piece.index, piece.holders[0] == rank
    return Flat(0, 0), False


def _local(tensor: Tensor, index: Flat | Grid) -> Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.view(index.shape if isinstance(index, Grid) else -1)
