"""What an inner step of ZeRO updates on this rank: views of the flat fp32 masters, to multiply decays into.

A group's ``params`` is one flat fp32 tensor then. Where in it a weight lies is DeepSpeed's own:
``tests/engines/test_updated.py`` holds DeepSpeed to what is written here, ``zero/state.py`` has the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alphadecay_dist.engines.updated import Updated


def fragments_of(parameters: Sequence[Any]) -> Updated:
    """Stages 1 and 2: the fragment of each master in this rank's flat partition of the group.

    Args:
        parameters: the model's; DeepSpeed has linked each to its master.
    """
    mappings = [(place, parameter._hp_mapping) for place, parameter in enumerate(parameters)]
    return [(place, found.hp_fragment.detach()) for place, found in mappings if found is not None]


def partitions_of(group: Mapping[str, Any], parameters: Sequence[Any]) -> Updated:
    """Stage 3: this rank's chunk of each master in the sub-group that is being stepped.

    Between steps, and while another group is stepped, the group's ``params`` is empty.

    Args:
        group: the inner optimizer's, at that moment.
        parameters: the model's, in the order of the group's names.
    """
    if not group["params"]:
        return []
    (flat,) = group["params"]
    zero = parameters[0]._z3_optimizer
    found = []
    for place, parameter in enumerate(parameters):
        sub_group, start, length = zero.grad_position[zero.get_param_id(parameter)]
        if zero.fp32_partitioned_groups_flat[sub_group] is flat:
            found.append((place, flat.detach().narrow(0, start, length)))
    return found
