"""The layout of each weight under ZeRO, as its sources will show them, from shapes alone.

DeepSpeed is not loaded. Its padding is repeated here; ``tests/commands/test_plan_measured.py`` compares it
with real runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from alphadecay_dist.engines.expected_layouts import Sharding, range_layout
from alphadecay_dist.params.inventory import Weight
from alphadecay_dist.sharding.layout import Flat, Layout, chunked_layout

ALIGNMENT = 2  # elements of which each rank's part of a flat group is a multiple, at stages 1 and 2


def stage_3(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, Layout]:
    """A chunk of every weight a rank."""
    return {weight.name: chunked_layout(math.prod(weight.shape), sharding.world_size) for weight in weights}


def masters(model: nn.Module, weights: Sequence[Weight], sharding: Sharding) -> dict[str, Layout]:
    """Stages 1 and 2: of the flat fp32 group that is a weight's own, an equal part a rank."""
    ranks = sharding.world_size
    return {weight.name: _master_layout(math.prod(weight.shape), ranks) for weight in weights}


def _master_layout(size: int, ranks: int) -> Layout:
    return range_layout(Flat(0, size), ALIGNMENT * -(-size // (ALIGNMENT * ranks)), ranks, 1)
