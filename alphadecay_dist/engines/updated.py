"""What an optimizer step over the tuned group updates on this rank: views to multiply decays into.

Under DeepSpeed a group's ``params`` is one flat fp32 tensor. Where in it a weight lies is DeepSpeed's own;
``tests/engines/test_updated.py`` holds it to what is written here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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


def fragments_of(parameters: Sequence[nn.Parameter]) -> Updated:
    """ZeRO stages 1 and 2: the fragment of each fp32 master in this rank's flat partition of the group."""
    mappings = [(place, parameter._hp_mapping) for place, parameter in enumerate(_any(parameters))]
    return [(place, found.hp_fragment.detach()) for place, found in mappings if found is not None]


def partitions_of(group: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> Updated:
    """ZeRO stage 3: this rank's piece of each fp32 master in the sub-group that is being stepped.

    Between steps, and while another group is stepped, the group's ``params`` is empty.
    """
    if not group["params"]:
        return []
    (flat,) = group["params"]
    zero = next(_any(parameters))._z3_optimizer
    found = []
    for place, parameter in enumerate(parameters):
        sub_group, start, length = zero.grad_position[zero.get_param_id(parameter)]
        if zero.fp32_partitioned_groups_flat[sub_group] is flat:
            found.append((place, flat.detach().narrow(0, start, length)))
    return found


def _any(parameters: Sequence[nn.Parameter]) -> Iterator[Any]:
    """As objects with the attributes that DeepSpeed has hung on them."""
    return iter(parameters)
