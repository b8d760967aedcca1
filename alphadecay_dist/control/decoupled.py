"""Which optimizers multiply their decay into the weights, rather than add it to the gradient."""

from __future__ import annotations

import torch

from alphadecay_dist.engines.zero.marks import is_deepspeeds_muon
from alphadecay_dist.optimizers.pair import MuonWithAdamW


def is_decoupled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer multiplies its decay into the weights; assumed of classes not torch's own."""
    optimizer = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer's own
    if _says_so(optimizer):
        return True
    own = isinstance(optimizer, torch.optim.AdamW | torch.optim.Muon | torch.optim.Adafactor)
    return own or not type(optimizer).__module__.startswith("torch.optim")


def decays_by_product(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its decay is known to be the product of the weights with 1 - lr * decay before the update."""
    if isinstance(optimizer, torch.optim.Muon | MuonWithAdamW) or is_deepspeeds_muon(optimizer):
        return True
    return isinstance(optimizer, torch.optim.Adam) and _says_so(optimizer)


def _says_so(optimizer: torch.optim.Optimizer) -> bool:
    return all(group.get("decoupled_weight_decay", False) for group in optimizer.param_groups)
