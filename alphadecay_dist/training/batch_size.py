"""How a global batch is cut into micro-batches."""

from __future__ import annotations

import math

from alphadecay_dist.errors import UserError
from alphadecay_dist.training.recipe import TrainConfig


def micro_batch(train: TrainConfig, world_size: int) -> int:
    """The largest divisor of a rank's share of the global batch that does not exceed ``train.micro_batch``.

    Raises:
        UserError: the ranks do not divide the global batch.
    """
    if train.global_batch % world_size:
        raise UserError(
            f"train.global_batch: found {train.global_batch}, not divisible by {world_size} ranks; "
            "expected a multiple of the number of ranks"
        )
    share = train.global_batch // world_size
    small = [size for size in range(1, math.isqrt(share) + 1) if share % size == 0]
    return max(size for size in (*small, *(share // size for size in small)) if size <= train.micro_batch)
