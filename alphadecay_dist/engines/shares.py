"""What each rank counts of the parameters, for norms of weights and of gradients.

Sharded or not, padded or not, held once or by many ranks: over all ranks every element is counted once.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """What this rank counts of one parameter.

    Attributes:
        name: of the tuned weight that it is; None for all else that is trained.
        weight: elements of it as the optimizer updates them, of any shape.
        gradient: the same elements of its gradient, averaged over ranks and micro-batches.
    """

    name: str | None
    weight: Tensor
    gradient: Tensor
