"""This rank among the others of a run."""

from __future__ import annotations

import torch
import torch.distributed as dist

from alphadecay_dist.sharding.collectives import Collectives


class Ranks(Collectives):
    """All ranks of the launcher, in the process group that was joined; rank 0 speaks for them.

    Args:
        device: this rank's, where sums are made.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(dist.group.WORLD, device)

    def say(self, text: str) -> None:
        """Print a line, on rank 0 alone. Not collective."""
        if self.is_main:
            print(text, flush=True)
