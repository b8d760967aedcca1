"""The loss of a language model without the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORE = -100  # the label of padding
LOGITS_AT_ONCE = 2**25  # 128 MiB in fp32


class LossHead(nn.Linear):
    """The projection to the vocabulary, and the loss of what it predicts.

    torch.nn.functional.linear_cross_entropy does the same in pieces, but returns the sum in bf16 for bf16
    inputs: 2 % off over a thousand tokens.
    """

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """The summed loss.

        Args:
            hidden: (n, h).
            targets: (n,) int64; ``IGNORE`` is left out.

        Returns:
            The fp32 sum of the cross entropies, a scalar.
        """
        return _SummedLoss.apply(hidden, self.weight, targets)


class _SummedLoss(torch.autograd.Function):
    """Cross entropy of ``hidden @ weight.T``, some rows at a time; gradients are computed on the way.

    Computing them in the backward would need the logits again: as much work as the head's forward.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Loss, and both gradients where one is wanted."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(1, LOGITS_AT_ONCE // weight.shape[0])
        learning = any(ctx.needs_input_grad[:2])
        of_hidden = torch.empty_like(hidden) if learning else None
        of_weight = torch.zeros_like(weight) if learning else None
        for start in range(0, len(hidden), rows):
            piece, wanted = hidden[start : start + rows], targets[start : start + rows]
            logits = functional.linear(piece, weight)  # (rows, vocabulary)
            logs = logits.float().log_softmax(-1)
            total += functional.nll_loss(logs, wanted, ignore_index=IGNORE, reduction="sum")
            if of_hidden is not None and of_weight is not None:
                # The softmax less one at the target, and nothing where the label is padding.
                known = (wanted != IGNORE).unsqueeze(1)
                slope = logs.exp_().scatter_add_(1, wanted.clamp_min(0).unsqueeze(1), -known.float())
                slope = (slope * known).to(logits.dtype)
                of_hidden[start : start + rows] = slope @ weight
                of_weight += slope.T @ piece
        ctx.save_for_backward(of_hidden, of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients, times the loss's own."""
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * slope.to(of_hidden.dtype), of_weight * slope.to(of_weight.dtype), None
