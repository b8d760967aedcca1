"""What an engine shows of a run's weights and optimizer state, to be saved and to be loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from alphadecay_dist.sharding.layout import Flat, Grid

WEIGHT = "weight"  # the kind of the fp32 weights; others have the optimizer's names: exp_avg, exp_avg_sq

Scalars = dict[str, dict[str, float]]  # such as the step counter: by the optimizer's key, by parameter


@dataclass(frozen=True)
class Part:
    """What this rank holds of one tensor of a run's state.

    Attributes:
        name: of the parameter.
        kind: ``weight``, or the optimizer's name for it.
        shape: of the whole tensor.
        index: where in the tensor the part lies.
        values: the part, to read from and to write into: flat, or of the grid's shape.
        saved: whether this rank is the one that saves it, of those that hold the same.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    index: Flat | Grid
    values: Tensor
    saved: bool = True


class EngineState(Protocol):
    """A run's state under one engine, on this rank."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by name, in the model's order; the same on every rank."""
        ...

    def parts(self) -> list[Part]:
        """This rank's parts of all tensors that exist: optimizers make theirs at their first step."""
        ...

    def scalars(self) -> Scalars:
        """What the optimizer keeps of a parameter in one number; the same on every rank."""
        ...

    def create(self, kinds: Mapping[str, Collection[str]], scalars: Scalars) -> None:
        """Make the optimizer's tensors, for :meth:`parts` to show, and set its numbers.

        Args:
            kinds: what the optimizer is to keep of each parameter, by name.
            scalars: as :meth:`scalars` returned them.
        """
        ...

    def publish(self, step: int) -> None:
        """Let the model compute with what was written into the parts, after ``step`` updates. Collective."""
        ...


def is_elementwise(value: Any, owner: Tensor) -> bool:
    """Whether an entry of an optimizer's state has an element for every element of what it belongs to."""
    return isinstance(value, Tensor) and value.shape == owner.shape and value.dim() > 0


def scalar_tensor(value: float, owner: Tensor, group: Mapping[str, Any]) -> Tensor:
    """A number of an optimizer's state, as torch's optimizers keep it."""
    on_device = group.get("fused") or group.get("capturable")
    return torch.tensor(value, dtype=torch.float32, device=owner.device if on_device else "cpu")
