"""What an optimizer step over the tuned group updates on this rank: tensors to multiply decays into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alphadecay_dist.params.groups import names_in

Updated = list[tuple[int, Tensor]]  # place in the group's names, this rank's part


def parameters_of(group: Mapping[str, Any]) -> Updated:
    """The group's own parameters that have a gradient: whole, a DTensor's local part, or FSDP1's slice."""
    return [
        (place, parameter.to_local() if isinstance(parameter, DTensor) else parameter)
        for place, parameter in enumerate(group["params"])
        if parameter.grad is not None
    ]


def dtypes_of(groups: Iterable[Mapping[str, Any]]) -> set[torch.dtype]:
    """The types of what the groups of tuned weights hold."""
    return {parameter.dtype for group in groups if names_in(group) for parameter in group["params"]}
